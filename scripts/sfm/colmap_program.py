"""COLMAP as the installed program, 3.8 to 4.x. Option names moved between groups over the versions, so that its own help decides."""

import os
import re
import shutil
import subprocess

from nerf.errors import UserError
from sfm.work import GLOBAL_TOLERANCE, OVERLAP, ColmapError, has_nvidia_gpu, last_words

PROGRAM = "colmap"
# Groups that an option without one may be in, the newest first.
GROUPS = ("FeatureExtraction", "FeatureMatching", "SiftExtraction", "SiftMatching")


class ColmapProgram:
    """name: for the report; has_gpu: whether features can be found and matched on a GPU here."""

    def __init__(self):
        self.path = shutil.which(PROGRAM)
        # Debian's build opens a window otherwise, which fails where there is no display.
        self.environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
        banner = self._help("-h")
        version = re.search(r"COLMAP (\S+)", banner)
        if version is None:
            raise UserError(f"{self.path}: does not answer as COLMAP does; correct the PATH or pass --colmap pycolmap.")
        self.name = f"colmap {version.group(1)} (program)"
        # Without CUDA the GPU is used through a window of OpenGL, which servers have not.
        self.has_gpu = "with CUDA" in banner and has_nvidia_gpu()
        self._banner, self._known = banner, {}

    @staticmethod
    def is_there():
        return shutil.which(PROGRAM) is not None

    def has_matcher(self, kind):
        """Whether COLMAP's matcher `kind` is in the program."""
        return f"{kind}_matcher" in self._banner

    def extract(self, work, names, one_camera, features):
        """Finds features of the photos `names`, which share a camera or have one each."""
        masks = {"ImageReader.mask_path": work.masks} if work.masks else {}
        self._run(work, "feature_extractor", {
            "database_path": work.database, "image_path": work.images, "image_list_path": _list(work, "photos.txt", names), **masks,
            "ImageReader.camera_model": features.camera_model, "ImageReader.single_camera": int(one_camera),
            "ImageReader.single_camera_per_image": int(not one_camera), "max_image_size": features.longest, "use_gpu": int(features.gpu),
            "estimate_affine_shape": int(features.affine), "domain_size_pooling": int(features.affine)})

    def match(self, work, kind, features, vocabulary=None):
        """Matches pairs chosen by COLMAP's matcher `kind`; vocabulary: a vocabulary tree's file, for vocab_tree."""
        more = {"SequentialMatching.overlap": OVERLAP} if kind == "sequential" else {}
        if kind == "vocab_tree":
            more = {"VocabTreeMatching.vocab_tree_path": vocabulary}
        self._run(work, f"{kind}_matcher", {**self._matching(work, features), **more})

    def match_pairs(self, work, pairs, features):
        """Matches the pairs [(name, name), ...]."""
        file = _list(work, "pairs.txt", (f"{a} {b}" for a, b in pairs))
        self._run(work, "matches_importer", {**self._matching(work, features), "match_list_path": file, "match_type": "pairs"})

    def map(self, work, folder):
        """Poses and points from the matches, into folder/0, 1, ...: none where nothing fits together."""
        try:
            self._run(work, "mapper", {"database_path": work.database, "image_path": work.images, "output_path": folder,
                                       "Mapper.ba_global_function_tolerance": GLOBAL_TOLERANCE})
        except ColmapError as error:
            if error.status != 1:
                raise

    def refine(self, work, model):
        """Adjusts `model` in place once more, the principal points too."""
        self._run(work, "bundle_adjuster", {"input_path": model, "output_path": model, "BundleAdjustment.refine_principal_point": 1})

    def undistort(self, work, model, folder):
        """Pinhole photos in folder/images and their model in folder/sparse."""
        self._run(work, "image_undistorter", {"image_path": work.images, "input_path": model, "output_path": folder, "output_type": "COLMAP"})

    def write_text(self, work, model, folder):
        """`model` as text."""
        self._run(work, "model_converter", {"input_path": model, "output_path": folder, "output_type": "TXT"})

    def _matching(self, work, features):
        return {"database_path": work.database, "use_gpu": int(features.gpu), "guided_matching": int(features.affine)}

    def _help(self, *arguments):
        try:
            ran = subprocess.run([self.path, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False, env=self.environment)
        except OSError as error:
            raise UserError(f"Cannot run {self.path} ({error.strerror}): install COLMAP anew or pass --colmap pycolmap.") from None
        return (ran.stdout + ran.stderr).decode(errors="replace")

    def _options(self, command, values):
        """The arguments for `values`, which name options with their group, or without where it differs between versions."""
        if command not in self._known:
            self._known[command] = set(re.findall(r"--([\w.]+)", self._help(command, "-h")))
        arguments = []
        for key, value in values.items():
            name = next((name for name in (key, *(f"{group}.{key}" for group in GROUPS)) if name in self._known[command]), None)
            if name is None:
                raise UserError(f"{self.path} {command}: this version ({self.name}) knows no option {key}; install another or pass --colmap pycolmap.")
            arguments += [f"--{name}", str(value)]
        return arguments

    def _run(self, work, command, values):
        arguments = self._options(command, values)
        with open(work.log, "ab") as log:
            start = log.tell()
            status = subprocess.run([self.path, command, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False,
                                    env=self.environment).returncode
        if status != 0:
            raise ColmapError(f"colmap {command} ended with status {status} ({last_words(work.log, start)})", status)


def _list(work, name, lines):
    file = work.folder / name
    file.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    return file
