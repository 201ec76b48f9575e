# %% [markdown]
# # The cascade in one picture
#
# A face is degraded by Eq. 13 and restored by Algorithm 1, one step of the paper in each cell. The face is
# procedural and the cascade is the packaged one (32 to 128 px), so nothing is downloaded.

# %%
import hashlib

import matplotlib.pyplot as plt
import torch

from diffbfr.cascade import Cascade, packaged_cascade, sample
from diffbfr.degradation import PRESETS, degrade, draw, sample_seed
from diffbfr.diffusion import q_sample
from diffbfr.images import decode, lq_to_model, resize, to_pixels, to_tensor
from diffbfr.metrics.psnr import psnr
from diffbfr.models.denoiser import upsample
from diffbfr.synthetic import render_face


def show(**pictures):
    _, axes = plt.subplots(1, len(pictures), figsize=(2.4 * len(pictures), 2.7))
    for axis, (title, pixels) in zip(axes, pictures.items(), strict=True):
        axis.imshow(pixels, interpolation="nearest")
        axis.set_title(title.replace("_", " "))
        axis.axis("off")
    plt.tight_layout()
    plt.show()


# %% [markdown]
# ## A procedural face
#
# `render_face` renders a face from a seed. Its attributes include the rare ones of Sec. 4.1 of the paper
# (moles, fringe, gray photos).

# %%
cascade = Cascade.load(packaged_cascade())
face = render_face(seed=20_260_000, px=cascade.hq_px)
y_0 = face.pixels
rare = ("moles", "freckles", "glasses", "fringe", "gray")
print({name: getattr(face.attributes, name) for name in rare})

# %% [markdown]
# ## Eq. 13: x = [(y * k_sigma) down r + n_delta] JPEG_q
#
# The parameters are drawn from the content of the photo; the result is the literal JPEG, at its own low
# resolution.

# %%
spec = PRESETS["paper"].at(cascade.hq_px)
params = draw(spec, sample_seed("notebook", hashlib.sha256(y_0.tobytes()).hexdigest(), 1))
jpeg = degrade(y_0, params, spec)
lq = decode(jpeg).pixels
print(f"sigma {params.sigma:.2f} px, r {params.r:.2f}, delta {params.delta:.1f}, q {params.q}")
print(f"{len(jpeg)} bytes, {lq.shape[1]} x {lq.shape[0]} px")

# %% [markdown]
# ## IRM-1: the identity, at low resolution
#
# x_0 is the photo at IRM-1's size. Sampling starts from pure noise (a full start) and is conditioned on x_0
# at every step (Eq. 5).

# %%
key = [f"{hashlib.sha256(jpeg).hexdigest()}/0/0"]
x_0 = to_tensor(lq_to_model(lq, cascade.lq_px))
identity = cascade.identity(x_0, key)

# %% [markdown]
# ## IRM-2: up to full resolution, from a truncated start
#
# The start is not noise: the enlarged result of IRM-1 is diffused to step N_1 (Eq. 2) and denoised from
# there.

# %%
irm2 = cascade.irm2
enlarged = upsample(identity, irm2.spec.px)
noise = torch.randn(enlarged.shape, generator=torch.Generator().manual_seed(0))
start = q_sample(enlarged, torch.tensor([irm2.spec.start]), irm2.schedule, noise)
restored = sample(irm2, key, "fast", start_image=enlarged, condition=enlarged)

# %% [markdown]
# ## TEM: the texture, by an unconditional prior trained on clean faces
#
# The start is truncated again, at N_2, which is shallow enough to keep the identity.

# %%
polished = sample(cascade.tem, key, "fast", start_image=restored, condition=None)

# %% [markdown]
# ## All of it in one picture

# %%
show(
    **{
        "low quality": resize(lq, cascade.hq_px, "bilinear"),
        "IRM-1": to_pixels(enlarged)[0],
        f"start of IRM-2, y_{irm2.spec.start}": to_pixels(start.clamp(-1, 1))[0],
        "IRM-2": to_pixels(restored)[0],
        "TEM": to_pixels(polished)[0],
        "ground truth": y_0,
    }
)

# %% [markdown]
# ## What each stage gains, and the same in one call
#
# `Cascade.restore` is Algorithm 1 whole; noise is keyed by the photo, so the result is the same picture,
# alone or in any batch.

# %%
truth = torch.from_numpy(y_0)[None]


def gain(picture):
    return float(psnr(torch.from_numpy(picture)[None], truth))


scores = {
    "LQ": gain(resize(lq, cascade.hq_px, "bilinear")),
    "IRM-1": gain(to_pixels(enlarged)[0]),
    "IRM-2": gain(to_pixels(restored)[0]),
    "TEM": gain(to_pixels(polished)[0]),
}
for name, score in scores.items():
    print(f"{name:6} PSNR {score:.2f} dB")

once_more = cascade.restore(x_0, key)
assert torch.equal(to_tensor(to_pixels(once_more.tem)[0]), to_tensor(to_pixels(polished)[0]))
assert scores["TEM"] > scores["LQ"], "the restored face is nearer to the truth than the photo"
