from .teacher import Teacher as Teacher
from .teacher import TeacherConfig as TeacherConfig
from .teacher import load_teachers as load_teachers
