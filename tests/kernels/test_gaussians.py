"""mutual_information of correlated Gaussians with the optimal critic, whose information is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bench.gaussians import Gaussians
from main_kernels import mutual_information, mutual_information_bounds
from main_kernels.information import ESTIMATORS

from .contract import seeded


def density_ratio(x, y, information):
    """ln p(y_j|x_i) / p(y_j) for all i, j, from the densities themselves and in numpy: nothing in common with the
    embeddings that the estimators see."""
    rho = math.sqrt(-math.expm1(-2 * information / x.shape[1]))
    residual = y[None] - rho * x[:, None]
    conditional = -0.5 * (residual**2).sum(2) / (1 - rho**2) - 0.5 * x.shape[1] * math.log(1 - rho**2)
    return conditional + 0.5 * (y**2).sum(1)


def sample(information, dimensions, pairs, generator):
    rho = math.sqrt(-math.expm1(-2 * information / dimensions))
    x = generator.standard_normal((pairs, dimensions))
    return x, rho * x + math.sqrt(1 - rho**2) * generator.standard_normal((pairs, dimensions))


def controlled(values, joint_means, information):
    """Mean of the values and its standard error; what varies with mean f_ii, whose expectation is I, is regressed
    out."""
    values, joint = np.asarray(values), np.asarray(joint_means) - information
    slope = np.cov(values, joint)[0, 1] / joint.var(ddof=1)
    rest = values - slope * joint
    return rest.mean(), rest.std(ddof=2) / math.sqrt(len(rest))


def estimates(gaussians, pairs, batches, estimator, **options):
    """Values of an estimator in repeated batches, and mean f_ii of each batch."""
    generator = seeded(pairs + int(10 * gaussians.information))
    values, joint = [], []
    for _ in range(batches):
        query, key = gaussians.pairs(pairs, generator)
        values.append(mutual_information(query, key, estimator=estimator, **options).item())
        joint.append(float((query.double() * key.double()).sum(1).mean()))
    return values, joint


def test_the_critic_is_the_density_ratio():
    gaussians = Gaussians(3.0, 5)
    x, y = gaussians.draw(40, seeded(1))
    query, key = gaussians.critic(x, y)
    assert query.shape == key.shape == (40, 7)
    assert np.abs((query @ key.T).cpu().numpy() - density_ratio(x.cpu().numpy(), y.cpu().numpy(), 3.0)).max() < 1e-12
    many = density_ratio(*sample(3.0, 5, 1500, np.random.default_rng(0)), 3.0)
    assert np.diag(many).mean() == pytest.approx(3.0, abs=0.2)


@pytest.mark.parametrize("information", [0.5, 2.0, 4.0, 8.0])
@pytest.mark.parametrize(("pairs", "batches"), [(32, 300), (128, 60)])
def test_infonce_saturates_at_log_n(information, pairs, batches):
    """Within 2% of E[log N + f_11 - log sum_j exp f_1j], here by Monte Carlo in numpy, float64, fresh samples."""
    values, joint = estimates(Gaussians(information), pairs, batches, "infonce")
    got, error_got = controlled(values, joint, information)
    generator = np.random.default_rng(7)
    exact_values, exact_joint = [], []
    for _ in range(batches):
        f = density_ratio(*sample(information, 4, pairs, generator), information)
        top = f.max(1)
        lse = top + np.log(np.exp(f - top[:, None]).sum(1))
        exact_values.append(math.log(pairs) + (np.diag(f) - lse).mean())
        exact_joint.append(np.diag(f).mean())
    want, error_want = controlled(exact_values, exact_joint, information)
    assert max(error_got, error_want) < 0.006 * want  # the comparison means something
    assert got == pytest.approx(want, rel=0.02)
    assert got < min(information, math.log(pairs))
    if information > 1.5 * math.log(pairs):
        assert got > 0.9 * math.log(pairs)


@pytest.mark.parametrize("information", [0.5, 2.0, 4.0])
def test_nwj_and_dv_are_unbiased(information):
    gaussians = Gaussians(information)
    generator = seeded(3)
    values = {"nwj": [], "dv": []}
    for _ in range(40):
        query, key = gaussians.pairs(512, generator)
        values["dv"].append(mutual_information(query, key, estimator="dv").item())
        values["nwj"].append(mutual_information(gaussians.plus_one(query), key, estimator="nwj").item())
    for name, sampled in values.items():
        mean, standard_error = np.mean(sampled), np.std(sampled, ddof=1) / math.sqrt(40)
        assert abs(mean - information) < 3 * standard_error, name
        assert standard_error < 0.05 * max(information, 1)


@pytest.mark.parametrize("information", [2.0, 4.0])
@pytest.mark.parametrize("clip", [1.0, 3.0])
def test_smile_has_its_known_bias(information, clip):
    """I - log E[exp(clamp(f, -clip, clip))] over the product of the marginals, the expectation by Monte Carlo."""
    values, joint = estimates(Gaussians(information), 256, 40, "smile", clip=clip)
    got, standard_error = controlled(values, joint, information)
    generator = np.random.default_rng(11)
    x, y = sample(information, 4, 1500, generator)[0], generator.standard_normal((1500, 4))
    partition = np.exp(density_ratio(x, y, information).clip(-clip, clip)).mean()
    assert abs(got - (information - math.log(partition))) < 4 * standard_error + 0.01
    assert abs(got - information) > 10 * standard_error  # and it is a bias indeed


@pytest.mark.parametrize("information", [0.5, 2.0, 6.0])
def test_club_is_an_upper_bound(information):
    """Its expectation is I + KL(product || joint) = d ρ² / (1 - ρ²), less 1/N for the diagonal in its second mean."""
    gaussians = Gaussians(information)
    values, _ = estimates(gaussians, 256, 60, "club")
    mean, standard_error = np.mean(values), np.std(values, ddof=1) / math.sqrt(60)
    want = (1 - 1 / 256) * 4 * gaussians.rho2 / (1 - gaussians.rho2)
    assert abs(mean - want) < 3 * standard_error
    assert mean > information + 3 * standard_error


@pytest.mark.parametrize("information", [0.5, 3.0, 9.0])
def test_the_bounds_have_their_published_order(information):
    """What holds for every batch: InfoNCE <= log N; NWJ and TUBA linearise the log of DV, so they are below it; JS is
    at most 0 and at least its value for a critic that says nothing. In the mean, lower bounds are below I."""
    generator = seeded(9)
    drawn = [Gaussians(information).pairs(64, generator) for _ in range(60)]
    joint = [float((query * key).sum(1).mean()) for query, key in drawn]
    bounds = [mutual_information_bounds(*pair) for pair in drawn]
    batches = {name: np.array([b[name].item() for b in bounds]) for name in ESTIMATORS}
    tiny = 1e-5 * max(1.0, float(np.abs(joint).max()))
    assert (batches["infonce"] <= math.log(64) + tiny).all()
    assert (batches["nwj"] <= batches["dv"] + tiny).all()
    assert (batches["tuba"] <= batches["dv"] + tiny).all()
    assert (batches["js"] <= 0).all()
    assert batches["js"].mean() > -2 * math.log(2)
    for name in ("infonce", "nwj"):
        mean, standard_error = controlled(batches[name], joint, information)
        assert mean < information + 3 * standard_error


def test_tuba_is_tight_with_its_optimal_baseline(backend):
    """The bound is highest at b_i = log mean_{j≠i} exp f_ij (Poole et al., 2019), with 1 + mean(...) - 1 left."""
    query, key = Gaussians(2.0).pairs(64, seeded(5))
    f = (query @ key.T).fill_diagonal_(-torch.inf)
    best = (f.logsumexp(1) - math.log(63)).requires_grad_()
    value = mutual_information(query, key, estimator="tuba", baseline=best)
    (slope,) = torch.autograd.grad(value, best)
    assert slope.abs().max() < 1e-6
    for other in (None, torch.tensor(0.3), best.detach() + 0.1 * torch.randn(64)):
        assert mutual_information(query, key, estimator="tuba", baseline=other) < value
