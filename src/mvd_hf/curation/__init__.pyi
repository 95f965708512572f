from .fingerprints import read_fingerprints as read_fingerprints
from .near_duplicates import find_near_duplicates as find_near_duplicates
from .splitting import choose_sampling as choose_sampling
from .splitting import find_overlap_by_content as find_overlap_by_content
from .splitting import split_rows as split_rows
