using MambaVL.Samples.Scenes;

namespace MambaVL.Tests.Scenes;

public class CaptionTextTests
{
    [Fact]
    public void A_caption_is_read_as_it_was_written()
    {
        foreach (var (scene, _) in Made.Scenes(Splits.Unseen, 200).Concat(Made.Scenes(Splits.Train, 300)))
        {
            if (CaptionText.Of(scene) is not { } caption) continue;
            Read(caption.ToString()).Should().BeEquivalentTo(caption);
            // As a model writes it: capitals and full stop of the prompt's own.
            Read(Prompts.TextFormat.Sentence(caption.ToString())).HasSameObjects(caption).Should().BeTrue();
        }
    }

    [Theory]
    [InlineData("A cat on a red background.", "a cat", null, "red")]
    [InlineData("Three strawberries on an orange background.", "three strawberries", null, "orange")]
    [InlineData("two fish on a blue background", "two fish", null, "blue")]
    [InlineData("A cat to the left of two dogs on a green background.", "a cat, two dogs", "Left", "green")]
    [InlineData("Two dogs to the right of a cat on a green background.", "a cat, two dogs", "Left", "green")]
    [InlineData("A cat above an owl.", "a cat, an owl", "Above", null)]
    [InlineData("An owl below a cat.", "a cat, an owl", "Above", null)]
    [InlineData("From left to right: a cat, two apples and a car.", "a cat, two apples, a car", "Left", null)]
    [InlineData("From left to right: a cat and a car.", "a cat, a car", "Left", null)]
    public void What_a_caption_says(string text, string groups, string? relation, string? background)
    {
        var caption = Read(text);
        string.Join(", ", caption.Groups).Should().Be(groups);
        (caption.Relation?.ToString(), caption.Background).Should().Be((relation, background));
    }

    [Theory]
    [InlineData("")]
    [InlineData(".")]
    [InlineData("A dragon on a red background.")]
    [InlineData("A cats on a red background.")]
    [InlineData("Two cat on a red background.")]
    [InlineData("Cat on a red background.")]
    [InlineData("A cat on a mauve background.")]
    [InlineData("A cat beside a dog.")]
    [InlineData("A cat above a cat.")]
    [InlineData("A cat above a dog above a pig.")]
    [InlineData("A cat to the left of a dog above a pig.")]
    [InlineData("From left to right: a cat.")]
    [InlineData("From left to right: a cat, and a car and.")]
    [InlineData("From left to right: a cat, a dog, a cat and a car.")]
    [InlineData("A cat and a dog.")]
    [InlineData(" background")]
    public void What_says_nothing_that_could_be_checked(string text) => CaptionText.TryParse(text, out _).Should().BeFalse();

    [Theory]
    [InlineData("A cat to the left of two dogs on a green background.", true)]
    [InlineData("A cat to the left of two dogs on a blue background.", true)] // the background is scored by itself
    [InlineData("Two dogs to the right of a cat.", true)]
    [InlineData("From left to right: a cat and two dogs.", true)]
    [InlineData("Two dogs to the left of a cat on a green background.", false)]
    [InlineData("A cat above two dogs on a green background.", false)]
    [InlineData("A cat to the left of a dog on a green background.", false)]
    [InlineData("A cat to the left of three dogs on a green background.", false)]
    [InlineData("A cat to the left of two pigs on a green background.", false)]
    [InlineData("A cat on a green background.", false)]
    public void The_same_objects_in_the_same_places(string text, bool same)
        => Read(text).HasSameObjects(Read("A cat to the left of two dogs on a green background.")).Should().Be(same);

    private static CaptionText Read(string text)
    {
        CaptionText.TryParse(text, out var caption).Should().BeTrue(text);
        return caption!;
    }
}
