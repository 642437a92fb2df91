"""Photos of a mesh by path tracing with mitsuba: a matte or glossy object under soft light, alone or on a ground."""

import math
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.geometry import Similarity
from shared.meshing import Mesh

if TYPE_CHECKING:
    from scripts.make_scene import Rig, SceneConfig, Shader, Truth

Array = NDArray[np.float64]


def path_tracer(mesh: Mesh, rig: "Rig", config: "SceneConfig") -> "Shader":
    """Photos by mitsuba: light after at most one bounce, box-filtered pixels. Raises UserError where it is missing."""
    mi = import_mitsuba()
    ground = config.background == "ground"
    description = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": 3, "hide_emitters": not ground},
        "object": mitsuba_mesh(mi, mesh, config.material),
        **lights(mi, rig.sphere, config),
        **(ground_plane(mi, mesh, rig.sphere, config) if ground else {}),
    }
    scene = mi.load_dict(description)

    def shade(view: int, truth: "Truth") -> NDArray[np.float32]:
        """The photo of one view, (H, W, 3) linear RGB; only the box about the object is traced without a ground."""
        pose = np.eye(4)
        pose[:3] = rig.cam_to_world[view] * [-1, -1, 1, 1]  # mitsuba's camera has x to the left and y up
        left, top, width, height = (0, 0, rig.width, rig.height) if ground else box_about(truth.mask)
        crop = {"crop_offset_x": left, "crop_offset_y": top, "crop_width": width, "crop_height": height}
        film = {"type": "hdrfilm", "width": rig.width, "height": rig.height, "rfilter": {"type": "box"}}
        sensor = {
            "type": "perspective",
            "fov_axis": "y",
            "fov": 2 * math.degrees(math.atan(rig.height / 2 / rig.intrinsics[1, 1])),
            "near_clip": 0.01 * rig.sphere.scale,
            "far_clip": 1000 * rig.sphere.scale,
            "to_world": mi.ScalarTransform4f(pose),
            "sampler": {"type": "multijitter", "sample_count": config.samples},
            "film": {**film, **crop},
        }
        traced = np.array(mi.render(scene, sensor=mi.load_dict(sensor), seed=config.seed * 10007 + view))
        photo = np.zeros((rig.height, rig.width, 3), dtype=np.float32)
        photo[top : top + height, left : left + width] = traced[..., :3]
        return photo

    return shade


def box_about(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """left, top, width, height of the part that shows the object, with one pixel for what its centres just miss."""
    x, y, width, height = cv2.boundingRect(cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))))
    return (x, y, width, height) if width else (0, 0, 1, 1)


def import_mitsuba() -> Any:
    """mitsuba with the variant that needs neither a GPU nor LLVM."""
    try:
        import mitsuba
    except ImportError as error:
        raise UserError("mitsuba: not installed, and photos are traced with it; pip install isopull[demo]") from error
    mitsuba.set_variant("scalar_rgb")
    return mitsuba


def mitsuba_mesh(mi: Any, mesh: Mesh, material: str) -> Any:
    """The mesh with its vertex colours as reflectance."""
    albedo = {"type": "mesh_attribute", "name": "vertex_color"}
    matte = {"type": "diffuse", "reflectance": albedo}
    glossy = {"type": "principled", "base_color": albedo, "roughness": 0.3, "specular": 0.6}
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict({"type": "twosided", "bsdf": glossy if material == "glossy" else matte})
    smooth = mesh.normals is not None
    shape = mi.Mesh("object", len(mesh.vertices), len(mesh.faces), has_vertex_normals=smooth, props=properties)
    shape.add_attribute("vertex_color", 3, linear(mesh.colors).astype(np.float32).ravel())
    parameters = mi.traverse(shape)
    parameters["vertex_positions"] = mesh.vertices.astype(np.float32).ravel()
    parameters["faces"] = mesh.faces.astype(np.uint32).ravel()
    if mesh.normals is not None:
        parameters["vertex_normals"] = mesh.normals.astype(np.float32).ravel()
    parameters.update()
    return shape


def lights(mi: Any, sphere: Similarity, config: "SceneConfig") -> dict[str, Any]:
    """A surround, cloudy where it can be seen, and in the studio one large lamp above the viewer's left shoulder."""
    level = np.array([0.95, 1.0, 1.05]) * (1.0 if config.light == "studio" else 1.5)
    surround = {"type": "constant", "radiance": {"type": "rgb", "value": level.tolist()}}
    if config.background == "ground":
        clouds = 1.2 * level * cloudy(config.seed, 64, 128)
        surround = {"type": "envmap", "bitmap": mi.Bitmap(clouds.astype(np.float32))}
    emitters: dict[str, Any] = {"surround": surround}
    if config.light == "studio":
        centre = np.array(sphere.translation)
        place = centre + sphere.scale * to_up(np.array([-2.4, -3.0, 4.2]), config.up)
        forward = to_up(np.array([0.0, 1.0, 0.0]), config.up)
        aim = mi.ScalarTransform4f().look_at(place.tolist(), centre.tolist(), forward.tolist())
        lamp = {"type": "area", "radiance": {"type": "rgb", "value": [9.0, 8.4, 7.5]}}
        emitters["key"] = {"type": "rectangle", "to_world": aim.scale(1.3 * sphere.scale), "emitter": lamp}
    return emitters


def ground_plane(mi: Any, mesh: Mesh, sphere: Similarity, config: "SceneConfig") -> dict[str, Any]:
    """A wide mottled floor that touches the mesh from below."""
    axis = "xyz".index(config.up)
    place = np.array(sphere.translation)
    place[axis] = mesh.vertices[:, axis].min()
    pose = np.eye(4)
    pose[:3, :3] = 10 * sphere.scale * np.stack([to_up(e, config.up) for e in np.eye(3)], axis=1)
    pose[:3, 3] = place
    floor = mi.Bitmap(cloudy(config.seed + 1, 1024, 1024).astype(np.float32))
    texture = {"type": "bitmap", "bitmap": floor, "raw": True}
    material = {"type": "diffuse", "reflectance": texture}
    return {"ground": {"type": "rectangle", "to_world": mi.ScalarTransform4f(pose), "bsdf": material}}


def cloudy(seed: int, height: int, width: int) -> Array:
    """Noise of several octaves in 0.15..0.75, (H, W, 3), mirrored so that its left and right ends meet."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width // 2, 3))
    for octave in range(2, 9):
        coarse = rng.uniform(-1, 1, (min(2**octave, height), min(2**octave, width // 2), 3))
        total += cv2.resize(coarse, (width // 2, height), interpolation=cv2.INTER_CUBIC) * 0.8**octave
    total += 3 * total.mean(axis=-1, keepdims=True)  # mostly light and dark, a little colour
    return np.hstack([total, total[:, ::-1]]).clip(-2, 2) * 0.15 + 0.45


def to_up(vectors: Array, up: str) -> Array:
    """From a frame with z up to the mesh's, (..., 3)."""
    return vectors if up == "z" else np.stack([vectors[..., 0], vectors[..., 2], -vectors[..., 1]], axis=-1)


def linear(colours: NDArray[np.uint8] | None) -> Array:
    """uint8 sRGB (N, 3) to linear light in 0..1, the inverse of `srgb`."""
    values = np.asarray(colours, dtype=np.float64) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
