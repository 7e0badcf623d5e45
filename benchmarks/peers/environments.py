"""Environments for other people's tools, outside the development environment: made on demand, kept for the next time."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PEERS", "Peer", "PeerUnavailableError", "interpreter"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".benchmarks" / "peers"
_INSTALL_SECONDS = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One tool: its pinned requirements are requirements/<name>.txt, its questioner is ask_<name>.py."""

    name: str
    title: str
    licence: str
    answers: str
    """What its number is, and what of the question it knows."""


PEERS = (
    Peer(
        name="vramcalc",
        title="vramcalc 0.1.2",
        licence="MIT",
        answers="allocated memory of one GPU; its formulas were changed after its authors had measured these very rows",
    ),
    Peer(
        name="fitcheck",
        title="fitcheck-llm 0.3.1",
        licence="MIT",
        answers="its tensor terms, without its overhead, of one GPU; calibrated on a Tesla T4",
    ),
    Peer(
        name="llm_analysis",
        title="llm-analysis 0.2.2",
        licence="Apache-2.0",
        answers="weights, gradients, states and activations of one GPU of a data-parallel or ZeRO-3 group; no adapters",
    ),
    Peer(
        name="accelerate",
        title="accelerate 1.15.0 estimate-memory",
        licence="Apache-2.0",
        answers='"Training using Adam": no batch, sequence, sharding or adapters',
    ),
)


class PeerUnavailableError(Exception):
    """A tool cannot be installed here."""


def interpreter(peer: Peer, requirements_folder: Path = HERE / "requirements") -> Path:
    """The Python of a peer's environment, made with its pinned requirements when there is none yet.

    Raises:
        PeerUnavailableError: the packages cannot be had, without a network for example.
    """
    folder = ENVIRONMENTS / peer.name
    python, requirements = folder / "bin" / "python", requirements_folder / f"{peer.name}.txt"
    done = folder / "requirements.txt"
    wanted = requirements.read_text()
    if done.is_file() and done.read_text() == wanted:
        return python
    try:
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True
        )
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)],
            check=True,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr or str(error)).strip().splitlines()[-1]
        raise PeerUnavailableError(f"not installed: {last[:200]}") from error
    except subprocess.TimeoutExpired as error:
        raise PeerUnavailableError(f"not installed within {_INSTALL_SECONDS} s") from error
    done.write_text(wanted)
    return python
