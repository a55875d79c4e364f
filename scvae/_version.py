"""The version, and the check that another package of the same name is not installed."""

from importlib.metadata import PackageNotFoundError, distribution

__version__ = "0.1.0"


def refuse_namesake() -> None:
    """Stops the import if the distribution `scvae` (another project, on TensorFlow 1) is also installed.

    Both install a folder called scvae, so each overwrites files of the other.

    Raises
    ------
    ImportError
        If it is installed; the message names both versions and the commands that fix it.
    """
    try:
        other = distribution("scvae").version
    except PackageNotFoundError:
        return
    raise ImportError(
        f"scvae-torch {__version__} and another project's scvae {other} are both installed, and both put their files "
        "into a folder called scvae. Run: pip uninstall -y scvae scvae-torch && pip install scvae-torch"
    )
