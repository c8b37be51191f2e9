"""timm's EVA-02-L at 336 pixels, bf16, random weights."""
import torch

from common import Report, arguments, wall


def main():
    options = arguments(repeats=9)
    report = Report(options.json)
    import timm
    torch.set_grad_enabled(False)
    model = timm.create_model("eva02_large_patch14_clip_336", pretrained=False, num_classes=0).eval().to("cuda", torch.bfloat16)
    for images in (1, 16, 64):
        pixels = torch.randn(images, 3, 336, 336, device="cuda", dtype=torch.bfloat16)
        report.add(f"EVA-02-L/336, b{images}", f"timm {timm.__version__}", wall(options.repeats, lambda _: model.forward_features(pixels), warm_ups=3))


main()
