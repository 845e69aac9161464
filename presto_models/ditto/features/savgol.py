"""Savitzky-Golay filters: each value becomes that of a polynomial fitted to the values around it."""

from __future__ import annotations

import torch
from torch import Tensor


def odd_window(seconds: float, frames_per_second: float) -> int:
    """The odd number of frames that is nearest to so many seconds, at least 1."""
    return max(1, 2 * round((seconds * frames_per_second - 1) / 2) + 1)


class SavitzkyGolay:
    """``smooth(x)``: ``[..., frames]`` to the same shape, by least squares over a window that moves (1964).

    Away from the ends the middle of the polynomial fitted to the window around each value; at the ends, where there is
    no such window, that of the first or last one: ``scipy.signal.savgol_filter(x, window, order, mode="interp")``.

    Args:
        frames: of what is smoothed.
        window: frames, odd; where there are fewer, the largest odd number there is.
        order: of the polynomial; below the window.

    Raises:
        ValueError: the window is even, or something is out of range.
    """

    def __init__(
        self,
        frames: int,
        window: int,
        order: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window must be an odd number of frames, got {window}")
        if order < 0:
            raise ValueError(f"order must not be negative, got {order}")
        self.window = min(window, frames if frames % 2 else frames - 1)
        self.order = min(order, self.window - 1)
        self.half = self.window // 2
        at = torch.linspace(-1, 1, self.window, dtype=torch.float64) if self.half else torch.zeros(1).double()
        basis, _ = torch.linalg.qr(at[:, None] ** torch.arange(self.order + 1))
        fitted = (basis @ basis.T).to(device=device, dtype=dtype)  # values of a window -> of the polynomial through it
        self.first, self.middle, self.last = fitted[: self.half].T, fitted[self.half], fitted[self.half + 1 :].T

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., frames]``."""
        middle = x.unfold(-1, self.window, 1) @ self.middle
        return torch.cat((x[..., : self.window] @ self.first, middle, x[..., -self.window :] @ self.last), -1)
