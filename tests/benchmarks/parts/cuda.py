"""placeholder"""

from parts.setting import Row, Setting


def cuda(setting: Setting) -> Row:
    """placeholder"""
    return {}
