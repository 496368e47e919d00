"""vggjax: transfer learning with VGG in JAX, exact to the published Keras weights.

result = vggjax.fit(vggjax.Config(dataset="photos", unfreeze=("block5",)))
model = vggjax.load_pretrained("vgg16", weights="imagenet", include_top=True)
logits = model(vggjax.preprocess(images, mode="caffe"))
"""

__version__ = "0.1.0"

from vggjax.api import fit as fit
from vggjax.data.images.preprocess import Preprocessing as Preprocessing
from vggjax.data.images.preprocess import preprocess as preprocess
from vggjax.errors import ConfigError as ConfigError
from vggjax.errors import DataError as DataError
from vggjax.errors import VggjaxError as VggjaxError
from vggjax.errors import WeightsError as WeightsError
from vggjax.evaluation.evaluate import evaluate as evaluate
from vggjax.evaluation.imagenet import decode_predictions as decode_predictions
from vggjax.models.head import Head as Head
from vggjax.models.params import assign as assign
from vggjax.models.params import extract as extract
from vggjax.models.vgg import VGG as VGG
from vggjax.training.config import Config as Config
from vggjax.training.recipes import make_config as make_config
from vggjax.training.run_dir.saved_model import load_model as load_model
from vggjax.weights.load import load_pretrained as load_pretrained
from vggjax.weights.weight_file import read_weights as read_weights
from vggjax.weights.weight_file import write_weights as write_weights
