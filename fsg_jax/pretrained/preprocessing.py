"""What is done to an image before a pretrained network sees it; these facts travel with the weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fsg_jax._checks import check_choice, check_integer, check_positive, expect
from fsg_jax.data.extras import import_extra

INTERPOLATIONS = ("bilinear", "bicubic")


class Preprocessing(NamedTuple):
    """Resizing, centre crop and normalisation, as torchvision and timm evaluate.

    Attributes:
      mean: per channel, of values in [0, 1], in ``(x / 255 - mean) / std``.
      std: per channel, of values in [0, 1].
      size: of the result in pixels, height and width.
      crop: share in (0, 1] of the resized shorter side that the centre crop keeps.
      interpolation: ``"bilinear"`` or ``"bicubic"``, of Pillow, which filters when it makes an image smaller.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    crop: float
    interpolation: str

    def __call__(self, image: Any) -> np.ndarray:
        """The image as the network wants it: float32 (height, width, channels) of `size`, normalised.

        The image is resized, its proportions kept, until it covers ``floor(size / crop)``, and its centre is cut out.
        Needs Pillow (``pretrained`` extra).

        Args:
          image: uint8 (height, width, channels) with the channels of `mean`; or an image of Pillow, which is converted
            to RGB, or to grey values for one channel.

        Raises:
          ValueError: an array of another dtype or shape, or an image of Pillow for another number of channels than 1
            and 3.
        """
        pillow, channels = import_extra("PIL.Image", "pretrained"), len(self.mean)
        if isinstance(image, pillow.Image):
            mode = {1: "L", 3: "RGB"}.get(channels)
            expect(mode, "image", f"an array of {channels} channels", f"an image of Pillow, {image.mode}")
            image = np.asarray(image.convert(mode)).reshape(image.height, image.width, channels)
        image = np.asarray(image)
        fits = image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == channels and image.size
        expect(fits, "image", f"uint8 (height, width, {channels})", f"{image.dtype} {image.shape}")
        height, width = image.shape[:2]
        wanted = [int(side / self.crop) for side in self.size]
        if wanted[0] * width >= wanted[1] * height:  # the height decides
            resized = (wanted[0], max(wanted[1], width * wanted[0] // height))
        else:
            resized = (height * wanted[1] // width, wanted[1])
        how = pillow.Resampling[self.interpolation.upper()]
        planes = [pillow.fromarray(np.ascontiguousarray(image[..., c])) for c in range(channels)]
        image = np.stack([np.asarray(plane.resize(resized[::-1], how)) for plane in planes], -1)
        top, left = (round((have - want) / 2) for have, want in zip(resized, self.size, strict=True))
        image = image[top : top + self.size[0], left : left + self.size[1]].astype(np.float32)
        mean, std = (np.asarray(values, np.float32).reshape(1, 1, -1) for values in (self.mean, self.std))
        return (image / np.float32(255) - mean) / std

    def resized(self, size: int | tuple[int, int]) -> "Preprocessing":
        """The same for another size, one side or (height, width). Raises ValueError unless they are positive."""
        height, width = (size, size) if isinstance(size, int | np.integer) else size
        check_integer("image_size", height, 1)
        check_integer("image_size", width, 1)
        return self._replace(size=(int(height), int(width)))

    def with_channels(self, channels: int) -> "Preprocessing":
        """The same for another number of channels: the means over the channels for one, else repeated in order."""
        if channels == len(self.mean):
            return self
        statistics = (self.mean, self.std)
        if channels == 1:
            mean, std = (tuple([float(np.mean(values))]) for values in statistics)
        else:
            mean, std = (tuple([values[i % len(values)] for i in range(channels)]) for values in statistics)
        return self._replace(mean=mean, std=std)


def from_json(value: Mapping[str, Any], name: str) -> Preprocessing:
    """The preprocessing in the JSON object ``_asdict()``. Raises ValueError unless it is one; `name` says of what."""
    expect(isinstance(value, Mapping), name, "a JSON object", value)
    expect(set(value) == set(Preprocessing._fields), name, ", ".join(Preprocessing._fields), ", ".join(value))
    mean, std, size = (value[key] for key in ("mean", "std", "size"))
    lists = all(isinstance(v, list | tuple) for v in (mean, std, size))
    expect(lists and len(mean) == len(std) > 0 and len(size) == 2, name, "as many means as deviations, 2 sizes", value)
    numbers = all(isinstance(v, int | float) for v in (*mean, *std, value["crop"]))
    expect(numbers and np.isfinite(mean).all(), name, "finite numbers", value)
    check_positive(**{f"{name}: std[{i}]": v for i, v in enumerate(std)})
    expect(0 < value["crop"] <= 1, f"{name}: crop", "a number in (0, 1]", value["crop"])
    check_choice(f"{name}: interpolation", value["interpolation"], INTERPOLATIONS)
    fixed = Preprocessing(tuple(mean), tuple(std), (1, 1), value["crop"], value["interpolation"])
    return fixed.resized(tuple(size))
