"""The version, written down once, and the check that no other package's files are mixed with this one's."""

from importlib.metadata import PackageNotFoundError, distribution

__version__ = "0.1.0"


def refuse_namesake() -> None:
    """Stops the import where the distribution `scvae` (another project, on TensorFlow 1) is installed as well.

    Both install a folder called scvae, so each has overwritten files of the other.

    Raises
    ------
    ImportError
        Naming both, and the way out.
    """
    try:
        other = distribution("scvae").version
    except PackageNotFoundError:
        return
    raise ImportError(
        f"scvae-torch {__version__} and another project's scvae {other} are both installed, and both put their files "
        "into a folder called scvae. Run: pip uninstall -y scvae scvae-torch && pip install scvae-torch"
    )
