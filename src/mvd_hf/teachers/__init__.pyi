from .cache import TargetCacheConfig as TargetCacheConfig
from .cache import load_cached_teachers as load_cached_teachers
from .families import Architecture as Architecture
from .families import TeacherFamily as TeacherFamily
from .normalization import Normalization as Normalization
from .teacher import Teacher as Teacher
from .teacher import TeacherConfig as TeacherConfig
from .teacher import load_teachers as load_teachers
