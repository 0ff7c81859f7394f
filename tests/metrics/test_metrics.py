"""Distances against closed forms, torchmetrics, scipy and scikit-learn."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.datasets import load_sample_images
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from ddpm_sa.metrics.distances import frechet_distance, kernel_distance
from ddpm_sa.metrics.efficientnet import load_efficientnet
from ddpm_sa.metrics.features import Extractor, open_features
from ddpm_sa.metrics.moments import Moments
from ddpm_sa.metrics.precision_recall import shares
from ddpm_sa.metrics.summary import load_summary, save_summary, summarise

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(D: int, seed: int) -> tuple[Tensor, Tensor]:
    """A mean and a covariance of full rank."""
    root = normal(D, D, seed=seed) / D**0.5
    return normal(D, seed=seed + 100), root @ root.T + 0.1 * torch.eye(D, dtype=torch.float64)


def exactly(mean: Tensor, covariance: Tensor, count: int = 101) -> Moments:
    return Moments(count, mean, covariance * (count - 1))


class Linear(nn.Module):
    """Features of pictures as torchmetrics wants them, of one multiplication."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(3 * 4 * 4, 12, seed=9).float() / 7)

    def forward(self, images: Tensor) -> Tensor:
        return (images.float().flatten(1) @ self.weight).tanh()


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    real, made = normal(150, 3, 4, 4, seed=1).float(), normal(170, 3, 4, 4, seed=2).float()
    return real.clamp(-1, 1), (0.7 * made + 0.2).clamp(-1, 1)


def test_moments_of_parts_are_numpys_of_the_whole() -> None:
    rows = normal(500, 7) + 1e4  # where sums of squares would lose half their digits
    whole = Moments.of(rows[:3]) + Moments.of(rows[3:4]) + Moments.of(rows[4:])
    assert whole.count == 500
    np.testing.assert_allclose(whole.mean, rows.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(whole.covariance, np.cov(rows.numpy().T), rtol=1e-8, atol=1e-10)


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    for seed in range(3):
        (m, S), (n, R) = gaussian(20, seed), gaussian(20, seed + 10)
        cross = np.trace(scipy.linalg.sqrtm((S @ R).numpy())).real
        expected = float((m - n).square().sum() + S.trace() + R.trace()) - 2 * cross
        found = frechet_distance(exactly(m, S), exactly(n, R))
        assert found == pytest.approx(expected, rel=1e-10)
    # Covariances that commute: each axis on its own.
    S, R = torch.diag(torch.tensor([4.0, 9, 0]).double()), torch.diag(torch.ones(3).double())
    found = frechet_distance(
        exactly(torch.zeros(3).double(), S), exactly(torch.ones(3).double(), R)
    )
    assert found == pytest.approx(3 + 1 + 4 + 1, rel=1e-12)


def test_frechet_distance_of_a_singular_set_to_itself_is_nothing() -> None:
    few = Moments.of(normal(10, 300))
    assert abs(frechet_distance(few, few)) < 1e-9 * float(few.covariance.trace())


def expected_kernel(m: Tensor, S: Tensor, n: Tensor, R: Tensor) -> float:
    """E (x·y/D + 1)³ of independent x ~ N(m, S) and y ~ N(n, R), from their moments."""
    D, mu = len(m), m @ n
    second = (S @ R).trace() + n @ S @ n + m @ R @ m + mu**2
    third = mu**3 + 3 * mu * (m @ R @ m)
    third = third + 3 * (mu * ((S @ R).trace() + n @ S @ n) + 2 * m @ R @ S @ n)
    return float(1 + 3 * mu / D + 3 * second / D**2 + third / D**3)


def test_kernel_distance_of_gaussians_is_the_closed_form() -> None:
    (m, S), (n, R) = gaussian(6, 0), gaussian(6, 1)
    within = expected_kernel(m, S, m, S) + expected_kernel(n, R, n, R)
    expected = within - 2 * expected_kernel(m, S, n, R)
    draws = torch.tensor(
        [
            kernel_distance(
                m + normal(150, 6, seed=i) @ torch.linalg.cholesky(S).T,
                n + normal(120, 6, seed=1000 + i) @ torch.linalg.cholesky(R).T,
            )
            for i in range(100)
        ]
    )
    # Of an unbiased estimate: within four standard errors.
    error = float(draws.std()) / 10
    assert error < 0.05 * expected
    assert abs(float(draws.mean()) - expected) < 4 * error


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save", "ignore:std")
def test_distances_are_torchmetrics(pictures: tuple[Tensor, Tensor]) -> None:
    network = Linear()
    frechet = FrechetInceptionDistance(feature=network)
    kernel = KernelInceptionDistance(feature=network, subsets=1, subset_size=150)
    for images, real in ((pictures[0], True), (pictures[1][:150], False)):
        frechet.update(images, real=real)
        kernel.update(images, real=real)
    features = [network(images).detach() for images in (pictures[0], pictures[1][:150])]
    ours = frechet_distance(*(Moments.of(rows) for rows in features))
    assert ours == pytest.approx(float(frechet.compute()), rel=1e-5)  # its features are float32
    assert kernel_distance(*features) == pytest.approx(float(kernel.compute()[0]), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save", "ignore:std")
def test_score_is_torchmetrics(pictures: tuple[Tensor, Tensor]) -> None:
    network = Linear()
    theirs = InceptionScore(feature=network, splits=1)
    theirs.update(pictures[0])
    extractor = Extractor("test", "test", lambda images: (images.flatten(1), network(images)), CPU)
    found = summarise([(range(150), pictures[0])], extractor, 0)
    assert found is not None
    assert found.score == pytest.approx(float(theirs.compute()[0]), rel=1e-5)


def test_shares_are_those_of_nearest_neighbours() -> None:
    """Each by its definition, with scikit-learn's neighbours."""
    real, made = normal(130, 5), 0.8 * normal(110, 5, seed=1) + 0.3
    reach = {
        (name, k): NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, k]
        for name, x in (("real", real), ("made", made))
        for k in (3, 5)
    }
    apart = torch.cdist(real, made).numpy()
    found = shares(real, made)
    assert found.precision == pytest.approx((apart <= reach["real", 3][:, None]).any(0).mean())
    assert found.recall == pytest.approx((apart <= reach["made", 3][None]).any(1).mean())
    inside = apart <= reach["real", 5][:, None]
    assert found.density == pytest.approx(inside.sum() / 5 / 110)
    assert found.coverage == pytest.approx(inside.any(1).mean())
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


def test_shares_of_one_distribution_are_those_expected() -> None:
    """Naeem et al. 2020, lemmas 1 and 2: in any space, density is 1, and coverage known."""
    N, M, k = 300, 200, 5
    draws = [shares(normal(N, 4, seed=i), normal(M, 4, seed=1000 + i)) for i in range(40)]
    density = torch.tensor([draw.density for draw in draws])
    assert abs(float(density.mean()) - 1) < 4 * float(density.std()) / 40**0.5
    coverage = torch.tensor([draw.coverage for draw in draws])
    missed = math.prod((N - i) / (M + N - i) for i in range(1, k + 1))
    assert abs(float(coverage.mean()) - (1 - missed)) < 4 * float(coverage.std()) / 40**0.5


def test_sets_far_apart_share_nothing_and_a_copy_everything() -> None:
    real = normal(40, 3)
    apart = shares(real, real + 100)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)
    copy = shares(real, real)
    assert (copy.precision, copy.recall, copy.coverage) == (1, 1, 1)


def test_efficientnet_knows_photographs() -> None:
    """scikit-learn's flower and palace are ImageNet's daisy, 985, and palace, 698."""
    network = load_efficientnet()
    photographs = {
        name.rsplit("/")[-1]: torch.tensor(image.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        for name, image in zip(
            load_sample_images().filenames, load_sample_images().images, strict=True
        )
    }
    for name, number in (("flower.jpg", 985), ("china.jpg", 698)):
        features, logits = network(photographs[name][..., 107:534])
        assert features.shape == (1, 1280)
        assert logits.argmax(1).item() == number


def test_efficientnet_is_the_package_efficientnet_lite_pytorchs() -> None:
    """Version 0.1.0 of it gave these for the same weights and a picture without symmetry."""
    line = torch.linspace(-1, 1, 224)
    picture = torch.linspace(-1, 1, 3 * 224 * 224).reshape(1, 3, 224, 224) * line
    features, logits = load_efficientnet()(picture)
    theirs = torch.tensor([-0.7992, 0.86435, 0.6348, -0.18137, 0.38215, 1.57818])
    torch.testing.assert_close(logits[0, :6], theirs, rtol=0, atol=1e-4)
    theirs = torch.tensor([0.0, 0.0, 1.48551, 0.0052, 0.0, 0.0])
    torch.testing.assert_close(features[0, :6], theirs, rtol=0, atol=1e-4)


def test_grey_images_are_described_as_colour_and_others_refused() -> None:
    extractor = open_features("efficientnet", CPU)
    grey = normal(2, 1, 8, 8).float().clamp(-1, 1)
    features, probabilities = extractor(grey)
    assert features.equal(extractor(grey.expand(-1, 3, -1, -1))[0])
    assert probabilities is not None
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2).double())
    with pytest.raises(ValueError, match="not of 2 channels; give --features pixels, or a module"):
        extractor(grey.expand(-1, 2, -1, -1))


def test_summary_of_parts_is_that_of_the_whole_and_lasts(tmp_path) -> None:
    extractor = Extractor("test", "test", lambda images: images.flatten(1), CPU)
    images = normal(20, 2, 3, 3).float().clamp(-1, 1)
    whole = summarise([(range(20), images)], extractor, 15)
    late = summarise([(range(12, 20), images[12:])], extractor, 15)
    early = summarise([(range(5), images[:5]), (range(5, 12), images[5:12])], extractor, 15)
    assert whole is not None
    assert late is not None
    assert early is not None
    both = late + early
    assert both.indices.tolist() == list(range(15))
    assert both.rows.equal(whole.rows)
    torch.testing.assert_close(both.features.covariance, whole.features.covariance)
    pixels = images.double().transpose(0, 1).flatten(1)
    for channel, row in zip(both.channels(), pixels, strict=True):
        assert channel["mean"] == pytest.approx(float(row.mean()))
        assert channel["spread"] == pytest.approx(float(row.std(correction=0)))

    path = tmp_path / "some" / "summary.safetensors"
    save_summary(both, path)
    again = load_summary(path)
    assert again is not None
    assert again.features.scatter.equal(both.features.scatter)
    assert again.channels() == both.channels()
    path.write_bytes(path.read_bytes()[:-100])
    assert load_summary(path) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "resnet",
            "'resnet' is unknown; known are efficientnet, inception, pixels, ",
        ),
        ("no_such_module:name", "cannot be imported: No module named 'no_such_module'"),
        ("math:pi", "is a float, not a function of images"),
        ("inception", "pip install torchmetrics torch-fidelity"),
    ],
)
def test_features_that_are_not_there_are_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        open_features(name, CPU)


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (lambda images: images, r"gave \(4, 3, 2, 2\), not \(B, D\); flatten or pool it"),
        (lambda images: images[:2].flatten(1), r"gave \(2, 12\) for 4 images"),
        (lambda images: images.flatten(1) / 0, "gave values that are not finite"),
        (lambda images: None, "gave <class 'NoneType'>"),
    ],
)
def test_features_that_are_none_are_refused(gives, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Extractor("mine", "mine", gives, CPU)(torch.ones(4, 3, 2, 2))


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="images have values that are not finite"):
        Extractor("mine", "mine", lambda x: x, CPU)(torch.full((1, 1, 1, 1), torch.nan))
    with pytest.raises(ValueError, match="row 1 of 2 has values that are not finite"):
        Moments.of(torch.tensor([[0.0], [torch.inf]]))
    with pytest.raises(ValueError, match="1 images have no covariance; give at least 2"):
        frechet_distance(Moments.of(normal(1, 3)), Moments.of(normal(5, 3)))
    with pytest.raises(ValueError, match="sets of 3 and 4 features"):
        frechet_distance(Moments.of(normal(5, 3)), Moments.of(normal(5, 4)))
    with pytest.raises(ValueError, match="sets of 3 and 4 features"):
        kernel_distance(normal(5, 3), normal(5, 4))
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(normal(1, 3), normal(5, 3))
    with pytest.raises(ValueError, match="5 images have no 5 neighbours; give at least 6"):
        shares(normal(5, 3), normal(50, 3))
