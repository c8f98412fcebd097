"""The two networks of a GAN on images, as the course has them (a small DCGAN)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxstudy import ops
from jaxstudy.model import Model, from_linen
from jaxstudy.types import Array, Key, PyTree, UserError

LATENT_SIZE = 100  # numbers that an image is made from
SLOPE = 0.2  # of LeakyReLU, below 0
DROPOUT_RATE = 0.4  # of what a convolution of D gives, in training
WIDTHS = (256, 128, 64)  # channels of the enlarging layers, but for the last
DOUBLINGS = len(WIDTHS) + 1

Shape = tuple[int, int, int]  # height, width, channels
_init = nn.initializers.glorot_uniform()  # as Keras has it


class Discriminator(nn.Module):
    """[convolution 3x3 with stride 2, LeakyReLU, dropout] twice, and a logit."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map images x [B, H, W, C], 0 to 1, to logits [B]; above 0 means real."""
        for i in (1, 2):
            convolution = nn.Conv(
                64, (3, 3), strides=(2, 2), kernel_init=_init,
                conv_general_dilated=ops.conv_general_dilated, name=f"conv_{i}",
            )  # fmt: skip
            x = nn.leaky_relu(convolution(x), SLOPE)
            if train:
                x = ops.dropout(x, DROPOUT_RATE, self.make_rng("dropout"))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(1, kernel_init=_init, name="output")(x)[:, 0]


class ConvTranspose(nn.Module):
    """A transposed convolution 3x3 with stride 2: [B, H, W, C] to [B, 2H, 2W, O].

    The kernel is [h, w, O, C], as Keras has it.
    """

    filters: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Enlarge x [B, H, W, C]."""
        shape = (3, 3, self.filters, x.shape[-1])
        kernel = self.param("kernel", _init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[2:3], jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias)
        return ops.conv2d_transpose(x, kernel, stride=2) + bias


class Generator(nn.Module):
    """A dense layer makes a small image of 256 channels; it is doubled four times."""

    image_shape: Shape
    batch_norm: bool

    @nn.compact
    def __call__(self, noise: Array, train: bool) -> Array:
        """Map noise [B, 100], -1 to 1, to images [B, H, W, C], 0 to 1."""
        *size, channels = self.image_shape
        height, width = (side // 2**DOUBLINGS for side in size)
        dense = nn.Dense(height * width * 256, kernel_init=_init, name="dense")
        x = dense(noise).reshape(-1, height, width, 256)
        for i, filters in enumerate(WIDTHS, 1):
            x = nn.leaky_relu(ConvTranspose(filters, name=f"enlarging_{i}")(x), SLOPE)
            if self.batch_norm:
                x = nn.BatchNorm(
                    use_running_average=not train, momentum=0.99, epsilon=1e-3,
                    use_fast_variance=False,  # the fast one cancels in float32
                    name=f"norm_{i}",
                )(x)  # fmt: skip
        return nn.sigmoid(ConvTranspose(channels, name=f"enlarging_{DOUBLINGS}")(x))


def discriminator(image_shape: Shape = (64, 64, 1)) -> Model:
    """Says of images [B, H, W, C], 0 to 1, whether they are real, by a logit [B].

    Two convolutions that halve the image and a dense layer; 40 % of what the
    convolutions give is dropped in training. LeakyReLU, because a ReLU that never
    fires has no gradient either. Raises UserError as `generator` does.
    """
    _check(image_shape)
    example = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return from_linen(Discriminator(), example)


def generator(image_shape: Shape = (64, 64, 1), batch_norm: bool = True) -> Model:
    """Makes images [B, H, W, C], 0 to 1, of noise [B, 100].

    A dense layer and four transposed convolutions that double the image, the last with
    a sigmoid; after each of the others LeakyReLU and, with `batch_norm`, normalisation,
    whose statistics are in `extra`. Raises UserError where height or width is not a
    multiple of 16, or there are not 1 or 3 channels.
    """
    _check(image_shape)
    example = jax.ShapeDtypeStruct((1, LATENT_SIZE), jnp.float32)
    return from_linen(Generator(image_shape, batch_norm), example)


def sample_latent(key: Key, n: int) -> Array:
    """What n images are made from: numbers [n, 100], uniform from -1 to 1."""
    return jax.random.uniform(key, (n, LATENT_SIZE), jnp.float32, -1, 1)


@functools.partial(jax.jit, static_argnums=0)
def generate(model: Model, params: PyTree, extra: PyTree, z: Array) -> Array:
    """The pictures a generator makes of noise z [N, 100]: uint8 [N, H, W, C]."""

    def one(z: Array) -> Array:
        x, _ = model.apply(params, extra, z[None], train=False, key=None)
        return jnp.round(255 * x[0]).astype(jnp.uint8)

    return jax.lax.map(one, z, batch_size=50)


def _check(image_shape: Shape) -> None:
    *size, channels = image_shape
    least = 2**DOUBLINGS
    if any(side < least or side % least for side in size):
        raise UserError(
            f"the networks make images of {least}, {2 * least}, {3 * least}, ... "
            f"pixels a side, not of {size[0]} by {size[1]}"
        )
    if channels not in (1, 3):
        raise UserError(f"images have 1 or 3 channels, not {channels}")
