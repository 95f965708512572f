from .cache import TargetCacheConfig as TargetCacheConfig
from .cache import load_cached_teachers as load_cached_teachers
from .teacher import Teacher as Teacher
from .teacher import TeacherConfig as TeacherConfig
from .teacher import load_teachers as load_teachers
