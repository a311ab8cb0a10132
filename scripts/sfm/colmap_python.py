"""COLMAP as the Python package pycolmap, 3.13 or newer."""

import contextlib
import importlib.util
import os
import sys

from nerf.errors import UserError
from sfm.work import GLOBAL_TOLERANCE, OVERLAP, ColmapError, has_nvidia_gpu

PACKAGE = "pycolmap"


class ColmapPython:
    """As ColmapProgram."""

    def __init__(self):
        import pycolmap

        self.library = pycolmap
        if not hasattr(pycolmap, "FeatureExtractionOptions"):  # the newest of the names used here
            raise UserError(f"pycolmap {getattr(pycolmap, '__version__', '?')} is too old: run pip install --upgrade pycolmap.")
        self.name = f"pycolmap {pycolmap.__version__}"
        self.has_gpu = bool(pycolmap.has_cuda) and has_nvidia_gpu()

    @staticmethod
    def is_there():
        return importlib.util.find_spec(PACKAGE) is not None

    def has_matcher(self, kind):
        """Whether COLMAP's matcher `kind` is in the package."""
        return hasattr(self.library, _function(kind))

    def extract(self, work, names, one_camera, features):
        """Finds features of the photos `names`, which share a camera or have one each."""
        reader, extraction = self.library.ImageReaderOptions(), self.library.FeatureExtractionOptions()
        reader.camera_model = features.camera_model
        if work.masks:
            reader.mask_path = str(work.masks)
        extraction.use_gpu = features.gpu
        holder = extraction if hasattr(extraction, "max_image_size") else extraction.sift
        holder.max_image_size = features.longest
        extraction.sift.estimate_affine_shape = extraction.sift.domain_size_pooling = features.affine
        mode = self.library.CameraMode.SINGLE if one_camera else self.library.CameraMode.PER_IMAGE
        with _saying_into(work.log):
            self.library.extract_features(
                str(work.database), str(work.images), image_names=list(names), camera_mode=mode, reader_options=reader,
                extraction_options=extraction, device=self._device(features))

    def match(self, work, kind, features, vocabulary=None):
        """Matches pairs chosen by COLMAP's matcher `kind`; vocabulary: a vocabulary tree's file, for vocab_tree."""
        pairing = {}
        if kind == "sequential":
            pairing["pairing_options"] = self.library.SequentialPairingOptions()
            pairing["pairing_options"].overlap = OVERLAP
        elif kind == "vocab_tree":
            pairing["pairing_options"] = self.library.VocabTreePairingOptions()
            pairing["pairing_options"].vocab_tree_path = str(vocabulary)
        with _saying_into(work.log):
            getattr(self.library, _function(kind))(
                str(work.database), matching_options=self._matching(features), device=self._device(features), **pairing)

    def match_pairs(self, work, pairs, features):
        """Matches the pairs [(name, name), ...]."""
        file = work.folder / "pairs.txt"
        file.write_text("".join(f"{a} {b}\n" for a, b in pairs))
        pairing = self.library.ImportedPairingOptions()
        pairing.match_list_path = str(file)
        with _saying_into(work.log):
            self.library.match_image_pairs(
                str(work.database), matching_options=self._matching(features), pairing_options=pairing, device=self._device(features))

    def map(self, work, folder):
        """Poses and points from the matches, into folder/0, 1, ...: none where nothing fits together."""
        options = self.library.IncrementalPipelineOptions()
        options.ba_global_function_tolerance = GLOBAL_TOLERANCE
        with _saying_into(work.log):
            self.library.incremental_mapping(str(work.database), str(work.images), str(folder), options=options)

    def refine(self, work, model):
        """Adjusts `model` in place once more, the principal points too."""
        options = self.library.BundleAdjustmentOptions()
        options.refine_principal_point = True
        with _saying_into(work.log):
            reconstruction = self.library.Reconstruction(str(model))
            self.library.bundle_adjustment(reconstruction, options)
            reconstruction.update_point_3d_errors()
            reconstruction.write_binary(str(model))

    def undistort(self, work, model, folder):
        """Pinhole photos in folder/images and their model in folder/sparse."""
        with _saying_into(work.log):
            self.library.undistort_images(str(folder), str(model), str(work.images))

    def write_text(self, work, model, folder):
        """`model` as text."""
        with _saying_into(work.log):
            self.library.Reconstruction(str(model)).write_text(str(folder))

    def _matching(self, features):
        options = self.library.FeatureMatchingOptions()
        options.use_gpu, options.guided_matching = features.gpu, features.affine
        return options

    def _device(self, features):
        return self.library.Device.cuda if features.gpu else self.library.Device.cpu


def _function(kind):
    return f"match_{kind.replace('_', '')}"


@contextlib.contextmanager
def _saying_into(log):
    """What the library's C++ writes to stdout and stderr goes to the file `log`; its errors become ColmapErrors."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = os.dup(1), os.dup(2)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][-200:]
        raise ColmapError(f"pycolmap failed ({reason})") from None
    finally:
        for number, copy in enumerate(kept, 1):
            os.dup2(copy, number)
            os.close(copy)
