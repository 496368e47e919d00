"""What each recipe teaches, in words for a person: the report and `vggjax recipes` show them.

The settings are in recipes.py, under the same names. `figure` is what the lesson's own author
reports, on the real data; what was measured with this package stands in the README.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Lesson:
    """The words of one recipe."""

    title: str
    teaches: str
    """One paragraph."""
    source: str
    figure: str = ""
    """The author's own figure; empty where the recipe is this package's."""


_OURS = "this package"
_CATS = "a Keras lesson on Kaggle's cats and dogs"
_FLOWERS = "a lecture's three lessons on the flowers of tf_flowers"
_CIFAR = "a Keras lesson on VGG16 and CIFAR-10"
_CONVNETS = "Keras lessons on a convnet of one's own"
_STEPS = "a lesson that builds a convnet step by step on 10,000 images of CIFAR-10"

LESSONS: dict[str, Lesson] = {
    "classify": Lesson(
        "Name what is on a photograph",
        "A network that was trained on ImageNet already names 1,000 things. Its answer is a list "
        "of probabilities, and the first five are worth reading: where the first is sure the "
        "photograph looks like those that it learned from, where it is not the others say why. "
        "Pixels must come as the weights expect them, or the names are nonsense without any "
        "error.",
        "Keras' documentation of VGG16 and VGG19",
        "an eagle is an eagle with 99.8 %",
    ),
    "cats-vs-dogs": Lesson(
        "Cats and dogs from 2,000 photographs",
        "2,000 photographs are too few to learn to see from, and enough to learn to tell cats "
        "from dogs with eyes that are there already. All of VGG16 is frozen, so each photograph's "
        "features are computed once and kept; the small head on top then learns in seconds an "
        "epoch. Nearly all of the time goes into the features.",
        _CATS,
        "91.2 % on test; 1,006 s for the features and 67 s for the head",
    ),
    "cats-vs-dogs-vgg19": Lesson(
        "One sigmoid unit on VGG19",
        "On good features a straight line does: the head is a single unit on the flattened map, "
        "without a hidden layer, and four epochs are enough. What a deeper network has learned "
        "before counts for more than what is put on top of it.",
        _CATS,
        "97.3 %",
    ),
    "fruits": Lesson(
        "131 fruits, stopped in time",
        "Transfer goes far from ImageNet's photographs: fruits on a white ground, at 100 px, 131 "
        "classes. Only 603,779 of 15,318,467 parameters train. The loss on the validation split "
        "says when to stop: after two epochs without a better one the best weights are taken "
        "back.",
        "a Keras lesson on Fruits 360",
        "96.8 %; 603,779 of 15,318,467 parameters train",
    ),
    "flowers": Lesson(
        "Five flowers with a frozen VGG16",
        "The first of three steps. The base stays as ImageNet made it, and a head of 128 units "
        "learns five flowers on it. Training accuracy soon runs ahead of validation accuracy: "
        "with few photographs the head learns them by heart, which is what the next step is for.",
        _FLOWERS,
        "85.4 %",
    ),
    "flowers-augmented": Lesson(
        "The same flowers, never twice the same",
        "The second step turns, shifts, shears, zooms and mirrors each photograph anew at every "
        "step, so that none can be learned by heart. Training gets harder and slower, the gap to "
        "validation closes, and more epochs go on helping. Features cannot be kept: every drawn "
        "image is a new one.",
        _FLOWERS,
        "88.3 %",
    ),
    "flowers-finetune": Lesson(
        "Then let block5 move, a little",
        "The third step starts from the finished second one. The last block's features were made "
        "for ImageNet's classes, and now adapt to flowers, at a rate of one millionth: the head "
        "is good already, so its gradients are small and do not wreck what lies below.",
        _FLOWERS,
        "92.6 %",
    ),
    "cifar10-frozen": Lesson(
        "VGG16 on images of 32 px",
        "At 32 px five poolings leave one pixel of 512 numbers, and features that were learned at "
        "224 px see little. A frozen base is quick, and here it is not enough: compare it with "
        "the small convnets, which see CIFAR-10 as it is, and with cifar10-finetune.",
        _CIFAR,
        "55.8 %",
    ),
    "cifar10-collapse": Lesson(
        "How to wreck a trained network",
        "cifar10-frozen with everything unfrozen at once, at a rate of 1e-3. The head is random, "
        "so its first gradients are large and mean nothing; RMSprop gives every weight a step of "
        "full size, and the pretrained filters are overwritten within a few steps. Relus that no "
        "image reaches any more pass on no gradient and stay dead, the output no longer depends "
        "on the image, and the loss sits at ln 10 = 2.303, which is chance among ten classes.",
        _CIFAR,
        "10 %: chance",
    ),
    "cifar10-finetune": Lesson(
        "VGG16 on CIFAR-10, unfrozen with care",
        "The cure of cifar10-collapse: first the head alone, until its gradients mean something; "
        "then block5, then all, each at rates that warm up, that are a tenth of the head's at "
        "most and smaller the deeper a block lies (a general edge detector needs less change than "
        "a late feature), with gradients clipped to a norm of 1. The network is the same: only "
        "the order and the rates differ.",
        "the cure is this package's",
        "better than cifar10-frozen",
    ),
    "cifar10-scratch": Lesson(
        "No transfer at all, and 45,000 images",
        "With enough images and epochs a VGG16 needs no ImageNet: batch normalization makes it "
        "train from random weights, momentum and a high rate that falls as a cosine make it go "
        "far, and shifted and mirrored images with weight decay keep it from learning by heart. "
        "It takes hundreds of times the work of a frozen base.",
        "published figures of VGG16 with batch normalization on CIFAR-10",
        "93 to 94 %",
    ),
    "mnist-cnn": Lesson(
        "Handwritten digits with a small convnet",
        "Two convolutions and a pooling, 258,090 parameters, nearly all of them in the one dense "
        "layer. Digits of 28 px in one color are easy: five epochs do, and no pretrained network "
        "is needed.",
        _CONVNETS,
    ),
    "cifar10-cnn": Lesson(
        "The tutorial's convnet on CIFAR-10",
        "Three convolutions with poolings between them, 122,570 parameters. Ten kinds of things "
        "in 32 px are much harder than digits: training accuracy goes on rising while validation "
        "accuracy stops. The variants change one thing each.",
        "TensorFlow's tutorial Convolutional Neural Network (CNN), and lessons after it",
    ),
    "cifar10-cnn-dropout": Lesson(
        "The tutorial's convnet with dropout",
        "cifar10-cnn with dropout, which leaves out units at random, so that none can lean on a "
        "single other. The net learns more slowly, and training and validation stay closer "
        "together; in a few epochs it may not be ahead yet.",
        _CONVNETS,
    ),
    "cifar10-cnn-wide": Lesson(
        "The tutorial's convnet, twice as wide",
        "cifar10-cnn with four times the parameters in the same shape. More of them fit the "
        "training images faster, and help on unseen ones less than one would hope: width alone "
        "is not what is missing.",
        _CONVNETS,
        "61 %",
    ),
    "cifar10-cnn-deep-bn": Lesson(
        "Deeper, with batch normalization",
        "Six convolutions in VGG's manner, two before each pooling. Batch normalization keeps "
        "each layer's inputs in range, so that the deeper net trains at the same rate, and "
        "faster. Depth with normalization helps where width alone does not.",
        _CONVNETS,
    ),
    "cnn-conv": Lesson(
        "Convolutions alone",
        "Three convolutions and a dense layer, and no pooling: the map stays large, so nearly all "
        "of the 2.8 million parameters sit in the dense layer, which learns 10,000 images by "
        "heart. Look at how far training and validation come apart.",
        _STEPS,
        "57 to 69 % (the four nets of this lesson)",
    ),
    "cnn-pool-bn": Lesson(
        "Convolutions, pooling and batch normalization",
        "Pooling keeps what was found and forgets exactly where: 23 times fewer parameters than "
        "cnn-conv, and better on unseen images. Batch normalization makes it learn faster. It "
        "still learns by heart in the end.",
        _STEPS,
        "57 to 69 % (the four nets of this lesson)",
    ),
    "cnn-dropout": Lesson(
        "Pooling, batch normalization and dropout",
        "The net of cnn-pool-bn with dropout behind each block and before the output. It takes "
        "more epochs, and the loss on validation no longer turns upwards as early.",
        _STEPS,
        "57 to 69 % (the four nets of this lesson)",
    ),
    "cnn-early-stopping": Lesson(
        "Dropout, and stopped in time",
        "cnn-dropout again. Nobody knows beforehand how many epochs are enough: the run stops "
        "when the loss on validation has not fallen for five epochs, and the best weights are "
        "taken back. That saves half of the epochs or more; where the loss goes up and down a "
        "little patience costs a little accuracy, and more patience more time.",
        _STEPS,
        "57 to 69 % (the four nets of this lesson)",
    ),
    "digits": Lesson(
        "VGG11 from scratch on handwritten digits",
        "The job that needs no network: 1,797 digits of 8x8 px come with scikit-learn. It shows "
        "the whole way from images to a report within a minute or two, and that a large network "
        "may learn a small task from random weights.",
        _OURS,
    ),
    "probe": Lesson(
        "The head alone on the published features",
        "Ask what the features already know: everything is frozen and only the head learns. It is "
        "quick, because features are computed once, it cannot be wrecked, and it is the figure "
        "that any fine-tuning has to beat.",
        _OURS,
    ),
    "finetune": Lesson(
        "The head first, then block5 with it",
        "A random head would send meaningless gradients into what was learned before, so it "
        "learns alone first. Then the last block joins in, at a hundredth of the rate: adjusted, "
        "not learned anew.",
        _OURS,
    ),
    "scratch": Lesson(
        "Everything from random numbers",
        "What transfer saves: the same kind of network without any pretrained weights. Batch "
        "normalization makes it train at all; compare its curve and its time with probe and "
        "finetune on the same images.",
        _OURS,
    ),
}  # fmt: skip
