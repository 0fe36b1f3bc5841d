"""Fashion-MNIST at 14 × 14: means of 2 × 2 pixels, 4,000 images to train on and 2,000 to test."""

from robgib import Dataset, Split, register_data
from robgib.data.loaders import load_data


@register_data("fashion-14")
def fashion14(root, seed):
    """The first images of Fashion-MNIST at half its size."""
    whole = load_data("fashion-mnist", root)

    def small(part, count):
        x, y = part.at(part.rows(count, seed))
        return Split(x.unflatten(3, (14, 2)).mean(4).unflatten(2, (14, 2)).mean(3), y.clone())

    budgets = {"linf": 0.1, "l2": 1.0, "l1": 8.0}
    return Dataset(
        "fashion-14", small(whole.train, 4000), small(whole.val, 500), small(whole.test, 2000), whole.classes, budgets
    )
