"""SkyReels-V2."""

from tests.models.row import Tiny
from tests.models.rows.wan import ROWS as WAN
from tests.models.rows.wan import wan

ROWS = {"SkyReelsV2Transformer3DModel": Tiny(WAN["WanTransformer3DModel"].config, wan)}
