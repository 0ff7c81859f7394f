from ddpm_sa.image_format import ImageFormat
from ddpm_sa.model_card import model_card

NETWORK = {"block_out_channels": (8, 16), "num_class_embeds": 3}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "beta_schedule": "linear",
}


def card(labels: tuple[str, ...] | None, network: dict = NETWORK) -> str:
    kind = ImageFormat(channels=3, size=(8, 8), labels=labels)
    return model_card(kind, network, SCHEDULER, 10, None)


def test_the_class_of_no_label_is_no_class_of_images() -> None:
    text = card(("cat", "dog"))
    assert ", 2 classes (cat, dog; 2 stands for no label)" in text
    assert "labels = torch.arange(16) % 2\n" in text
    assert "class_labels='cat'" in text


def test_classes_without_names_are_counted() -> None:
    text = card(None)
    assert ", 3 classes." in text
    assert "labels = torch.arange(16) % 3\n" in text
    assert "class_labels=0" in text
    assert "class" not in card(None, NETWORK | {"num_class_embeds": None}).partition("## ")[0]
