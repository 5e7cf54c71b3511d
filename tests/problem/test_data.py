from pathlib import Path

import numpy as np
import pytest
import torch
from make_images import CLASSES, image, write_folder, write_tar
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from autocompress.errors import DataError
from autocompress.problem.data import Data, LazySplit, load_data
from autocompress.problem.splits import Normalisation, TensorSplit, augment_batch, spread
from autocompress.problem.teacher import Preprocessing

NORMALISATION = Normalisation((0.5,), (0.25,))


def error_of(spec: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load_data(spec, **options)  # type: ignore[arg-type]
    return str(caught.value)


def numbered(count: int) -> TensorSplit:
    """Image i is filled with the value i; labels alternate between 0 and 1."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    return TensorSplit(images, torch.arange(count) % 2, NORMALISATION)


def test_batches_are_normalised_in_order_and_end_with_the_rest():
    batches = list(numbered(5).batches(2))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    images, labels = batches[1]
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images[1, 0, 0, 0].item() == pytest.approx((3 / 255 - 0.5) / 0.25)
    assert labels.tolist() == [0, 1]
    assert [len(labels) for _, labels in numbered(5).batches(2, drop_last=True)] == [2, 2]
    assert [len(labels) for _, labels in numbered(5).batches(8, drop_last=True)] == [5]


def test_float_images_are_taken_as_they_are():
    images = torch.randn(4, 1, 8, 8)
    ((batch, _),) = TensorSplit(images, torch.arange(4), NORMALISATION).batches(4)
    assert torch.equal(batch, images)


def test_shuffling_depends_on_the_seed_alone_and_loses_nothing():
    split, state = numbered(64), torch.get_rng_state()

    def values(seed: int) -> list[float]:
        return [
            float(v) for images, _ in split.batches(8, shuffle=True, seed=seed) for v in images[:, 0, 0, 0]
        ]

    assert values(1) == values(1) != values(2)
    assert (
        sorted(values(1))
        == sorted(values(2))
        == [float(v) for i, _ in split.batches(64) for v in i[:, 0, 0, 0]]
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_every_prefix_of_a_spread_holds_each_class_in_its_share():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = spread(labels, seed=3)
    assert sorted(order.tolist()) == list(range(100))
    for count in (10, 20, 50, 90):
        found = labels[order[:count]].bincount(minlength=3).tolist()
        assert all(abs(n - count * share) <= 1 for n, share in zip(found, (0.6, 0.3, 0.1), strict=True))


def test_subsets_of_subsets_share_images():
    split = numbered(40).select(torch.arange(10, 30))
    part = split.subset(6, seed=1)
    assert part.size == 6 and part.labels.tolist().count(0) == 3
    assert part.images is split.images  # type: ignore[attr-defined]
    ((images, labels),) = part.batches(6)
    index = ((images[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().int()
    assert all(10 <= i < 30 for i in index.tolist())
    assert torch.equal(index % 2, labels.int())
    assert split.subset(99) is split


def test_augmentation_shifts_and_mirrors():
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(200, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    assert augment_batch(images, "none", generator) is images
    views = {bytes(view.numpy().tobytes()) for view in augment_batch(images, "crop", generator).contiguous()}
    expected = set()
    padded = np.pad(images[0, 0].numpy(), 1)
    for y in range(3):
        for x in range(3):
            expected.add(padded[y : y + 8, x : x + 8].tobytes())
    assert views == expected
    mirrored = {np.frombuffer(view, np.uint8).reshape(8, 8)[:, ::-1].tobytes() for view in expected}
    views = {
        bytes(view.numpy().tobytes()) for view in augment_batch(images, "crop-flip", generator).contiguous()
    }
    assert views == expected | mirrored


def test_digits_are_split_the_same_way_for_every_seed():
    from sklearn.datasets import load_digits

    data, other = load_data("digits", seed=0), load_data("digits", seed=5)
    assert (data.num_classes, data.input_shape) == (10, (3, 32, 32))
    assert data.test is not None
    assert (data.train.size, data.validation.size, data.test.size) == (1079, 359, 359)
    assert data.fingerprint == other.fingerprint != load_data("digits,size=16").fingerprint
    assert data.calibration.size == 512
    rows = [split.positions for split in (data.train, data.validation, data.test)]  # type: ignore[attr-defined]
    assert sorted(torch.cat(rows).tolist()) == list(range(1797))
    images = torch.cat([images for images, _ in data.train.batches(512)])
    assert abs(float(images.mean())) < 0.01 and abs(float(images.std()) - 1) < 0.01
    raw = load_digits().images[int(rows[0][3])]  # type: ignore[index]
    # Pixels 1 and 2 of a row that is doubled bilinearly weigh 3/4 and 1/4 of their neighbours.
    ((small, _),) = (
        load_data("digits,size=16,channels=1,mean=0,std=1").train.select(torch.tensor([3])).batches(1)
    )
    row = 0.75 * (0.75 * raw[0, 0] + 0.25 * raw[0, 1]) + 0.25 * (0.75 * raw[1, 0] + 0.25 * raw[1, 1])
    assert float(small[0, 0, 1, 1]) == pytest.approx(row / 16, abs=1 / 255)


def test_one_folder_is_cut_into_three(tmp_path: Path):
    root = write_folder(tmp_path / "photos", per_class=20)
    data = load_data(f"imagefolder:{root}")
    assert (data.num_classes, data.input_shape, data.class_names) == (3, (3, 16, 16), CLASSES)
    assert data.test is not None
    assert (data.train.size, data.validation.size, data.test.size) == (48, 6, 6)
    assert data.test.labels.bincount().tolist() == data.validation.labels.bincount().tolist() == [2, 2, 2]
    assert load_data(f"imagefolder:{root}").fingerprint == data.fingerprint
    assert load_data(f"imagefolder:{root}", seed=1).fingerprint != data.fingerprint
    assert load_data(data) is data


def test_pixels_of_a_folder_and_of_a_tar_are_those_of_the_files(tmp_path: Path):
    folder = load_data(f"imagefolder:{write_folder(tmp_path / 'a', 10)},mean=0/0/0,std=1/1/1")
    tar = load_data(f"imagefolder:{write_tar(tmp_path / 'b.tar', 10)},mean=0/0/0,std=1/1/1")
    assert folder.fingerprint == tar.fingerprint
    expected = {
        np.array(image(label, i)).transpose(2, 0, 1).tobytes(): label for label in range(3) for i in range(10)
    }
    for images, labels in tar.train.batches(7):
        for pixels, label in zip((images * 255).round().to(torch.uint8), labels, strict=True):
            assert expected[pixels.numpy().tobytes()] == int(label)


def test_held_out_sets_are_used_and_validation_is_cut_from_training(tmp_path: Path):
    write_tar(tmp_path / "train.tar", 20)
    write_folder(tmp_path / "val", 3, first=50)
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.test is not None
    assert (data.train.size, data.validation.size, data.test.size) == (54, 6, 9)
    write_folder(tmp_path / "test", 2, first=60)
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.test is not None
    assert (data.train.size, data.validation.size, data.test.size) == (60, 9, 6)


def test_a_held_out_set_with_fewer_classes_keeps_their_numbers(tmp_path: Path):
    write_folder(tmp_path / "train", 10)
    (tmp_path / "test" / "red").mkdir(parents=True)
    image(2, 77).save(tmp_path / "test" / "red" / "1.png")
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.test is not None and data.test.labels.tolist() == [2]


def test_the_size_is_the_users_then_the_files_then_the_teachers(tmp_path: Path):
    root = write_folder(tmp_path / "one", 10)
    teacher = Preprocessing(input_shape=(3, 24, 24), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert load_data(f"imagefolder:{root},size=12", preprocessing=teacher).input_shape == (3, 12, 12)
    data = load_data(f"imagefolder:{root}", preprocessing=teacher)
    assert data.input_shape == (3, 16, 16) and data.mean == (0.1, 0.2, 0.3)
    fixed = Preprocessing(input_shape=(3, 24, 24), fixed=True)
    assert load_data(f"imagefolder:{root}", preprocessing=fixed).input_shape == (3, 24, 24)
    image(0, 99, size=(40, 20)).save(root / "red" / "odd.png")
    assert load_data(f"imagefolder:{root}", preprocessing=teacher).input_shape == (3, 24, 24)
    assert "size=" in error_of(f"imagefolder:{root}")


def test_images_too_large_for_memory_are_read_when_asked_for(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", 10)
    eager = load_data(f"imagefolder:{path},size=12")
    lazy = load_data(f"imagefolder:{path},size=12", cache_memory_bytes=1000)
    assert isinstance(lazy.train, LazySplit)
    for (a, la), (b, lb) in zip(eager.train.batches(5), lazy.train.batches(5), strict=True):
        assert torch.equal(a, b) and torch.equal(la, lb)
    augmented = [torch.cat([x for x, _ in lazy.train.batches(5, augment=True, seed=s)]) for s in (1, 1, 2)]
    assert torch.equal(augmented[0], augmented[1]) and not torch.equal(augmented[0], augmented[2])


class Noisy(Dataset):
    """Augments by itself: each reading differs."""

    targets = [0, 1] * 10

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.rand(1, 4, 4), self.targets[index]


def test_datasets_of_tensors_and_of_pil_images():
    floats = TensorDataset(torch.randn(30, 2, 5, 4), torch.arange(30) % 3)
    data = load_data((floats, floats))
    assert (data.num_classes, data.input_shape, data.test) == (3, (2, 5, 4), None)
    ((images, labels),) = data.validation.batches(99)
    assert torch.equal(images, floats.tensors[0]) and torch.equal(labels, floats.tensors[1])
    pil = [(image(i % 3, i), i % 3) for i in range(30)]
    data = load_data((pil, pil[:6], pil[6:9]))
    assert data.input_shape == (3, 16, 16) and data.mean == (0.485, 0.456, 0.406)
    assert data.test is not None and data.test.size == 3


def test_a_dataset_that_augments_by_itself_is_not_frozen_and_is_repeatable():
    data = load_data((Noisy(), TensorDataset(torch.rand(4, 1, 4, 4), torch.arange(4) % 2)))
    assert isinstance(data.train, LazySplit)
    first, again, other = (
        torch.cat([x for x, _ in data.train.batches(6, shuffle=True, seed=s)]) for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_callable_of_a_file_gives_the_datasets(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def load(n=10):\n"
        "    d = TensorDataset(torch.zeros(n, 1, 4, 4), torch.arange(n) % 2)\n"
        "    return d, d\n"
        "def one(n=10):\n    return load(n)[0]\n"
        "def none():\n    return 3\n"
    )
    assert load_data(f"{tmp_path}/mine.py:load,n=12").train.size == 12
    held_out = load_data(f"{tmp_path}/mine.py:one,n=100")
    assert held_out.train.size + held_out.validation.size < 100
    assert "few" in error_of(f"{tmp_path}/mine.py:one")
    assert "has the type int, not a map-style dataset" in error_of(f"{tmp_path}/mine.py:none")


def pairs(*labels: object, shape: tuple[int, ...] = (1, 4, 4)) -> list[tuple[torch.Tensor, object]]:
    return [(torch.zeros(shape), label) for label in labels]


@pytest.mark.parametrize(
    ("datasets", "needle"),
    [
        ((pairs(0, 1),), "1 datasets"),
        ((pairs(0, 1), []), "validation data is empty"),
        ((pairs(0, 0), pairs(0)), "single class"),
        ((pairs(0, 1), pairs(2)), "label 2"),
        ((pairs(-1, 1), pairs(1)), "label -1"),
        ((pairs(0, 1.5), pairs(1)), "label of item 1 is 1.5"),
        ((pairs(0, 1), [3]), "not an (image, label) pair"),
        ((pairs(0, 1), 3), "not a map-style dataset"),
        ((pairs(0) + pairs(1, shape=(1, 5, 4)), pairs(1)), "image 1 has shape (1, 5, 4)"),
        (([*pairs(0), (torch.full((1, 4, 4), torch.nan), 1)], pairs(1)), "image 1 holds NaN"),
        (([*pairs(0), (torch.zeros(4), 1)], pairs(1)), "shape (4,)"),
        (([*pairs(0), (torch.zeros(4), 1)], pairs(1)), "(1, 1, 4) for a signal"),
        (([*pairs(0), (torch.zeros(2, 9), 1)], pairs(1)), "(2, 1, 9) for channels of a signal"),
        (([*pairs(0), ("path.png", 1)], pairs(1)), "an image is a str"),
    ],
)
def test_datasets_that_cannot_be_learned_from_are_refused(datasets: tuple, needle: str):
    assert needle in error_of(datasets)


@pytest.mark.parametrize(
    ("spec", "needle"),
    [
        ("digit", "not understood"),
        ("imagefolder", "needs a folder"),
        ("imagefolder:nowhere", "nowhere does not exist"),
        ("mnist:nowhere", "nowhere does not exist"),
        ("digits,colour=1", "option 'colour' is not known"),
        ("digits,augment=strong", "augment=strong"),
        ("digits,size=0", "size=0"),
        ("digits,mean=0.5", "mean and std are given together"),
        ("digits,mean=0.5/0.5,std=1/1", "2 values of mean and std for 3 channels"),
        (7, "int"),
    ],
)
def test_specs_that_name_no_data_are_refused(spec: object, needle: str):
    assert needle in error_of(spec)


def test_folders_that_hold_no_usable_images_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "no images were found" in error_of(f"imagefolder:{tmp_path}/empty")
    (tmp_path / "junk.tar").write_bytes(b"junk" * 300)
    assert "no images were found" in error_of(f"imagefolder:{tmp_path}/junk.tar")
    (tmp_path / "file.zip").write_bytes(b"")
    assert "neither a folder nor a .tar" in error_of(f"imagefolder:{tmp_path}/file.zip")
    assert "does not hold the mnist data" in error_of(f"mnist:{tmp_path}")
    assert "does not hold the cifar10 data" in error_of(f"cifar10:{tmp_path}")
    single = tmp_path / "single"
    (single / "red").mkdir(parents=True)
    image(0, 0).save(single / "red" / "0.png")
    assert "single class" in error_of(f"imagefolder:{single}")
    write_folder(tmp_path / "both" / "train", 10)
    write_folder(tmp_path / "both" / "test", 1)
    (tmp_path / "both" / "test" / "red").rename(tmp_path / "both" / "test" / "violet")
    assert "violet" in error_of(f"imagefolder:{tmp_path}/both")


def test_a_damaged_image_is_named(tmp_path: Path):
    tar = write_tar(tmp_path / "a.tar", 10, damage="green/7.png")
    assert "green/7.png" in error_of(f"imagefolder:{tar}")
    root = write_folder(tmp_path / "b", 10)
    whole = (root / "red" / "4.png").read_bytes()
    (root / "red" / "4.png").write_bytes(whole[: len(whole) // 2])
    assert "4.png" in error_of(f"imagefolder:{root}")


def test_grey_images_are_read_as_colour_and_colour_as_grey(tmp_path: Path):
    root = write_folder(tmp_path / "a", 10)
    Image.new("L", (16, 16), 51).save(root / "red" / "grey.png")
    assert load_data(f"imagefolder:{root}").input_shape == (3, 16, 16)
    data = load_data(f"imagefolder:{root},channels=1")
    assert data.input_shape == (1, 16, 16) and len(data.mean) == 1


def test_mnist_and_cifar_from_shared_data(shared_data: Path):
    data: Data = load_data(f"mnist:{shared_data}/mnist")
    assert data.test is not None
    assert (data.train.size, data.validation.size, data.test.size) == (55_000, 5_000, 10_000)
    assert data.input_shape == (1, 28, 28)
    assert data.validation.labels.bincount().min() > 400
