"""Pictures of the still life as uint8 arrays."""

import numpy as np

from .tracer import display, shade

SUBPIXELS = 3  # rays a pixel and axis; each looks at its own point of the lamp, which makes soft shadow edges


def photograph(things, view):
    """The picture that `view` takes, [H, W, 3] uint8."""
    width, height = view.lens.width, view.lens.height
    row, column = np.divmod(np.arange(width * height), width)
    total = np.zeros((3, width * height))
    for i in range(SUBPIXELS):
        for j in range(SUBPIXELS):
            across, down = (i + 0.5) / SUBPIXELS, (j + 0.5) / SUBPIXELS
            directions = view.rays(column + across, row + down)
            colours, _ = shade(things, view.centre[:, None], directions, (2 * across - 1, 2 * down - 1))
            total += display(colours)
    return np.floor(total / SUBPIXELS**2 * 255 + 0.5).astype(np.uint8).T.reshape(height, width, 3)
