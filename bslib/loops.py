"""The C loops (``kernels.c``) that torch has no fast operation for, as modules, for forward passes alone and for training.

They are for float32 on a CPU, compiled once with the C compiler of the machine and kept in the cache folder.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from bslib.files import atomic_path, cache_folder

__all__ = [
    "Library",
    "PooledConvolution",
    "TrainablePooledConvolution",
    "TrainableWinogradConvolution",
    "WinogradConvolution",
    "library_for",
]

#: What Winograd's way works on at a time: the fewest tiles (no fewer than ROWS in kernels.c), and the products (channels x
#: filters) that go with another one. More tiles need the weights less often, and leave a core's cache the sooner.
TILES, PRODUCTS_A_TILE = 13, 4000
#: The floats that lie between at the most, for each thread.
ROOM = 2**24
#: The tiles of a block on the way back: no fewer and no more than that, and the products that go with another one. All of the
#: gradient of the weights is read and written once a block.
TILES_BACK, PRODUCTS_A_TILE_BACK = (26, 130), 1000


class PooledConvolution(nn.Module):
    """A convolution of few channels, the 2 x 2 maximum of it and, where asked for, a ReLU; the result is channels-last.

    Parameters
    ----------
    conv : torch.nn.Conv2d
        One that :meth:`fits`; its weights of this moment are taken.
    library : Library
    clip : bool
        Whether a ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d, library: Library, *, clip: bool) -> None:
        super().__init__()
        self.library, self.clip = library, clip
        self.kernel, self.padding = conv.kernel_size, _padding(conv)
        self.weight, self.bias = _rows(conv.weight.detach()), _bias(conv)

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether a convolution is of the kind that gains: with few products for each result."""
        return _plain(conv) and conv.weight[0].numel() <= 32 and conv.out_channels % 32 == 0

    def forward(self, x: Tensor) -> Tensor:
        """From (b, c, h, w) to (b, filters, ph, pw)."""
        return _pooled(self.library, _padded(_own(x), self.padding), self.weight, self.bias, self.kernel, clip=self.clip)[0]


class TrainablePooledConvolution(nn.Module):
    """:class:`PooledConvolution` with the weights of a convolution that is being trained, and the way back."""

    def __init__(self, conv: nn.Conv2d, library: Library, *, clip: bool) -> None:
        super().__init__()
        self.conv, self.library, self.clip = conv, library, clip

    def forward(self, x: Tensor) -> Tensor:
        """From (b, c, h, w) to (b, filters, ph, pw)."""
        bias = _bias(self.conv) if self.conv.bias is None else self.conv.bias
        result: Tensor = _PooledStep.apply(_own(x), self.conv.weight, bias, self.library, _padding(self.conv), self.clip)
        return result


class _PooledStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, library: Library, padding: tuple[int, int], clip: bool
    ) -> Tensor:
        x = _padded(x, padding)
        kernel = (weight.shape[2], weight.shape[3])
        y, origin = _pooled(library, x, _rows(weight), bias, kernel, clip=clip, origin=any(ctx.needs_input_grad))
        ctx.save_for_backward(x, weight, origin)
        ctx.library, ctx.padding = library, padding
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, origin = ctx.saved_tensors
        filters, channels, kh, kw = weight.shape
        gradient = gradients[0].permute(0, 2, 3, 1).float().contiguous()
        images, ph, pw, _ = gradient.shape
        shape = (images, channels, *x.shape[2:], kh, kw, filters, ph, pw)
        of_x, of_weight, of_bias = None, None, None
        if ctx.needs_input_grad[0]:
            of_x, kernels = _empty(*x.shape), _by_place(weight)
            ctx.library.pooled_convolution_back_to(
                gradient, origin, kernels, of_x, *shape, kernels.shape[-1], torch.get_num_threads()
            )
            of_x = _padded(of_x, (-ctx.padding[0], -ctx.padding[1]))
        if any(ctx.needs_input_grad[1:3]):
            rows, of_bias = _empty(channels * kh * kw, filters), _empty(filters)
            ctx.library.pooled_convolution_back(x, gradient, origin, rows, of_bias, *shape, torch.get_num_threads())
            of_weight = rows.view(channels, kh, kw, filters).permute(3, 0, 1, 2)
        return of_x, of_weight, of_bias, None, None, None


class WinogradConvolution(nn.Module):
    """A 3 x 3 convolution by Winograd's F(4 x 4, 3 x 3), a sum and a ReLU behind it; the result is channels-last.

    36 products of matrices (tiles, channels) x (channels, filters) where the direct way has 144, between a transformation of the
    image and one of the result, for a few tiles at a time, in memory that all such layers of a network use in turn. At stride 2
    they are 81, for even and odd pixels.

    Parameters
    ----------
    conv : torch.nn.Conv2d
        One that :meth:`fits`; its weights of this moment are taken.
    library : Library
    clip : bool
        Whether a ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d, library: Library, *, clip: bool) -> None:
        super().__init__()
        self.library, self.clip, self.padding, self.stride = library, clip, _padding(conv)[0], conv.stride[0]
        planes = _empty(36 * conv.out_channels * conv.in_channels)
        self.weight, self.bias = _transformed(library, conv.weight.detach(), planes, stride=self.stride), _bias(conv)

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether a convolution is of the kind that gains."""
        least = 32 if conv.stride == (1, 1) else 64
        many = min(conv.in_channels, conv.out_channels) >= least and conv.in_channels % 16 == conv.out_channels % 32 == 0
        return _plain(conv, strides=(1, 2)) and many and conv.kernel_size == (3, 3) and len(set(conv.padding)) == 1

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """From (b, c, h, w) to what the convolution itself gives, which ``added`` has the shape of."""
        stride, clip = self.stride, self.clip
        return _winograd(self.library, x, self.weight, self.bias, self.padding, stride=stride, added=added, clip=clip)


class TrainableWinogradConvolution(nn.Module):
    """:class:`WinogradConvolution` with the weights of a convolution that is being trained; the way back is Winograd's too.

    Weights that need no gradient are transformed once, until they change.
    """

    def __init__(self, conv: nn.Conv2d, library: Library, *, clip: bool = False) -> None:
        super().__init__()
        self.conv, self.library, self.clip = conv, library, clip
        self._fixed: tuple[tuple[int, int], Tensor, Tensor] | None = None

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether a convolution gains on the way back too."""
        return WinogradConvolution.fits(conv) and conv.stride == (1, 1) and conv.in_channels % 32 == 0

    def forward(self, x: Tensor) -> Tensor:
        """From (b, c, h, w) to (b, filters, h + 2 padding - 2, w + 2 padding - 2)."""
        bias = _bias(self.conv) if self.conv.bias is None else self.conv.bias
        padding, planes = _padding(self.conv)[0], None if self.conv.weight.requires_grad else self._transformed_once()
        result: Tensor = _WinogradStep.apply(x, self.conv.weight, bias, self.library, padding, self.clip, planes)
        return result

    def _transformed_once(self) -> tuple[Tensor, Tensor]:
        """The weights as the way there and the way back take them."""
        weight = self.conv.weight
        key = (weight.data_ptr(), weight._version)
        if self._fixed is None or self._fixed[0] != key:
            straight, turned = (_empty(36 * weight.shape[0] * weight.shape[1]) for _ in range(2))
            _transformed(self.library, weight, straight)
            self._fixed = (key, straight, _transformed(self.library, weight.transpose(0, 1), turned))
        return self._fixed[1:]


class _WinogradStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        library: Library,
        padding: int,
        clip: bool,
        planes: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        y = _winograd(library, x, planes[0] if planes else _transformed(library, weight), bias, padding, clip=clip)
        ctx.save_for_backward(x if any(ctx.needs_input_grad[1:3]) else None, weight, y if clip else None)
        ctx.library, ctx.padding, ctx.shape, ctx.turned = library, padding, x.shape, planes[1] if planes else None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, clipped = ctx.saved_tensors
        turned = ctx.turned
        if turned is None and ctx.needs_input_grad[0]:
            turned = _transformed(ctx.library, weight.transpose(0, 1), name="turned")
        back = _winograd_back(ctx.library, x, turned, gradients[0], ctx.padding, ctx.shape, clipped, wanted=ctx.needs_input_grad)
        return *back, None, None, None, None


def _pooled(
    library: Library, x: Tensor, rows: Tensor, bias: Tensor, kernel: tuple[int, ...], *, clip: bool, origin: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The maxima of a convolution and, where asked for, the pixels of the four that they came from, packed.

    They are added up in float32 and, under autocast to bfloat16, rounded once.
    """
    (images, channels, height, width), (kh, kw), filters = x.shape, kernel, len(bias)
    ph, pw = (height - kh + 1) // 2, (width - kw + 1) // 2
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    y = _empty_image(images, filters, ph, pw, dtype=torch.bfloat16 if half else torch.float32)
    came_from = torch.empty((images, ph, -(-pw // 8), filters), dtype=torch.int32, device="cpu") if origin else None
    library.pooled_convolution(  # a bfloat16 tensor is handed on as half as many whole numbers: C is given no others
        x, rows, bias, y.permute(0, 2, 3, 1).view(torch.int32) if half else y.permute(0, 2, 3, 1), came_from,
        images, channels, height, width, kh, kw, filters, ph, pw, clip, half, torch.get_num_threads(),
    )  # fmt: skip
    return y, came_from


def _own(x: Tensor) -> Tensor:
    """float32 where autocast gives a layer less; nothing else is taken for what it is not."""
    return x.float() if torch.is_autocast_enabled("cpu") else x


def _padded(x: Tensor, padding: tuple[int, int]) -> Tensor:
    down, across = padding
    return (functional.pad(x, (across, across, down, down)) if down or across else x).contiguous()


def _rows(weight: Tensor) -> Tensor:
    """Kernels (filters, channels, kh, kw) as (channels * kh * kw, filters)."""
    return weight.permute(1, 2, 3, 0).reshape(-1, len(weight)).contiguous()


def _by_place(weight: Tensor) -> Tensor:
    """Kernels where they lie among the inputs of a 2 x 2 maximum, for each of its four places, and zeros; in whole vectors."""
    filters, channels, kh, kw = weight.shape
    places = torch.zeros((filters, 5, channels, kh + 1, kw + 1), dtype=torch.float32, device="cpu")
    for place, (down, across) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        places[:, place, :, down : down + kh, across : across + kw] = weight
    patches = places.flatten(2)
    return functional.pad(patches, (0, -patches.shape[2] % 16)).contiguous()


def _winograd(
    library: Library,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    padding: int,
    *,
    stride: int = 1,
    added: Tensor | None = None,
    clip: bool,
) -> Tensor:
    """A convolution with :func:`_transformed` kernels."""
    x = x.permute(0, 2, 3, 1).contiguous()
    added = None if added is None else added.permute(0, 2, 3, 1).contiguous()
    (images, height, width, channels), filters = x.shape, len(bias)
    if min(height, width) + 2 * padding < 3:  # C would divide otherwise than Python and write a row
        raise ValueError(f"images of {height} x {width} with padding {padding} are smaller than a kernel of 3 x 3")
    y = _empty_image(images, filters, *((side + 2 * padding - 3) // stride + 1 for side in (height, width)))
    threads, a_tile = torch.get_num_threads(), (36 if stride == 1 else 81) * (channels + filters)
    all_tiles = images * -(-y.shape[2] // 4) * -(-y.shape[3] // 4)
    wanted = min(channels * filters // PRODUCTS_A_TILE, -(-all_tiles // threads) + TILES - 1, ROOM // a_tile)
    room = a_tile * max(TILES, wanted)
    library.winograd_convolution(
        x, weight, bias, added, y.permute(0, 2, 3, 1), library.scratch("tiles", room * threads), room,
        images, height, width, channels, filters, padding, stride, clip, threads,
    )  # fmt: skip
    return y


def _empty(*shape: int) -> Tensor:
    """Whatever the defaults of the moment are, the loops take float32 on the CPU."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _empty_image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for a result (b, c, h, w) that lies channels last; not a view, so that what follows may work in place."""
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)


def _winograd_back(
    library: Library,
    x: Tensor | None,
    turned: Tensor | None,
    gradient: Tensor,
    padding: int,
    shape: torch.Size,
    clipped: Tensor | None,
    *,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of what went in, of the kernels (filters, channels, 3, 3) and of the bias, where they are asked for."""
    (images, channels, height, width), filters = shape, gradient.shape[1]
    of_x = _empty_image(*shape) if wanted[0] else None
    planes, bias = None, None
    if any(wanted[1:3]):
        planes, bias = library.scratch("weights", 36 * channels * filters), _empty(filters)
    room = 36 * (channels + filters) * min(max(channels * filters // PRODUCTS_A_TILE_BACK, TILES_BACK[0]), TILES_BACK[1])
    library.winograd_convolution_back(
        *(None if t is None else t.permute(0, 2, 3, 1).contiguous() for t in (x, gradient, clipped)), turned, planes, bias,
        None if of_x is None else of_x.permute(0, 2, 3, 1), library.scratch("tiles", room), room,
        images, height, width, channels, filters, padding, torch.get_num_threads(),
    )  # fmt: skip
    if planes is None:
        return of_x, None, None
    kernels = _empty(channels, 3, 3, filters)
    library.winograd_weight_back(planes, kernels, channels, filters)
    return of_x, kernels.permute(3, 0, 1, 2), bias


def _transformed(
    library: Library, kernels: Tensor, planes: Tensor | None = None, *, name: str = "weights", stride: int = 1
) -> Tensor:
    """Kernels (filters, channels, 3, 3) as 36 planes, of each 32 filters after 32, of these all channels.

    They stay where ``planes`` is theirs, else until the next call for scratch memory of this name.
    """
    filters, channels = kernels.shape[:2]
    planes = library.scratch(name, 36 * channels * filters) if planes is None else planes
    library.winograd_weight(kernels.permute(1, 2, 3, 0).contiguous(), planes, channels, filters, stride)
    return planes


def _plain(conv: nn.Conv2d, *, strides: tuple[int, ...] = (1,)) -> bool:
    """Whether a convolution has nothing but a kernel, one of these strides, zeros around the image and a bias."""
    return (
        conv.stride in [(stride, stride) for stride in strides]
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and conv.weight.dtype == torch.float32
        and conv.weight.device.type == "cpu"
    )


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(conv.padding, str)  # as _plain wants it
    return conv.padding[0], conv.padding[1]


def _bias(conv: nn.Conv2d) -> Tensor:
    return torch.zeros_like(conv.weight[:, 0, 0, 0]) if conv.bias is None else conv.bias.detach().clone()


class Library:
    """The compiled ``kernels.c``: each of its functions takes tensors or None for its pointers, whole numbers for the rest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loaded = ctypes.CDLL(str(path))
        self._memory = threading.local()  # the loops let other Python threads run

    def __reduce__(self) -> tuple[type[Library], tuple[Path]]:
        return Library, (self._path,)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._loaded, name)
        function.restype = None
        return lambda *arguments: function(*map(_as_c, arguments))

    def scratch(self, what: str, floats: int) -> Tensor:
        """Memory for what is needed until the next call, the same each time: fresh memory costs more than what is done in it."""
        memory = self._memory.__dict__
        if len(memory.get(what, ())) < floats:
            memory[what] = _empty(floats).zero_()
        found: Tensor = memory[what][:floats]
        return found


def _as_c(argument: Tensor | int | None) -> ctypes.c_void_p | ctypes.c_long:
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    if argument is None:
        return ctypes.c_void_p(None)
    fitting = argument.dtype in (torch.float32, torch.int32) and argument.device.type == "cpu" and argument.is_contiguous()
    if not fitting:  # C would read past its end
        raise TypeError(f"the C loops are for float32 on the CPU, got {argument.dtype} on {argument.device}")
    return ctypes.c_void_p(argument.data_ptr())


def library_for(x: Tensor) -> Library | str:
    """The C loops, or why they cannot be used on ``x``."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return "no C loops: they are for float32 on a CPU"
    return _load_library(str(torch.cpu.get_capabilities().get("cpu_name")), cache_folder())


@functools.cache
def _load_library(processor: str, folder: Path) -> Library | str:
    """``kernels.c`` compiled for this processor, from the folder or by the C compiler of this machine."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if compiler is None:
        return "no C loops: there is no C compiler (install gcc or clang)"
    source = Path(__file__).with_name("kernels.c")
    trouble = ""
    for options in (["-march=native", "-fopenmp"], ["-mcpu=native", "-fopenmp"], ["-march=native"], ["-mcpu=native"], []):
        command = [compiler, "-O3", "-fPIC", "-shared", *options]
        name = hashlib.sha256(repr((source.read_bytes(), processor, command)).encode()).hexdigest()[:20]
        path = folder / "kernels" / f"{name}.so"
        try:
            if not path.is_file():
                with atomic_path(path) as part:
                    subprocess.run([*command, "-o", part, source], check=True, capture_output=True, text=True, timeout=100)
            return Library(path)
        except subprocess.CalledProcessError as problem:
            trouble = (problem.stderr.strip().splitlines() or ["no message"])[0]
        except (OSError, subprocess.TimeoutExpired) as problem:
            trouble = str(problem)
    return f"no C loops: {compiler} cannot compile them ({trouble})"
