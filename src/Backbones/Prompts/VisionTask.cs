namespace MambaVL.Prompts;

/// <summary>What a model is asked about an image. Each task has its prompt, see <see cref="Conversation"/>.</summary>
public enum VisionTask
{
    /// <summary>One sentence about the image.</summary>
    Captioning,

    /// <summary>A word or phrase in answer to a question.</summary>
    QuestionAnswering,

    /// <summary>The letter of one of several answers.</summary>
    MultipleChoice,

    /// <summary>The letter of one of several boxes.</summary>
    GroundedMultipleChoice,

    /// <summary>The box of what a phrase describes.</summary>
    Grounding,

    /// <summary>A short description of what is in a box.</summary>
    DenseCaptioning,

    /// <summary>One sentence about the image, with a box after each thing that it names.</summary>
    GroundedCaptioning,

    /// <summary>Whether a description fits the image: <c>True.</c> or <c>False.</c></summary>
    ImageTextMatch,

    /// <summary>A conversation.</summary>
    Chat,
}
