"""The words of the generated world and what they mean: a taxonomy for each slot of an event, synonyms, opposites.

Everything downstream (entailment, similarity, relevance) follows from one boolean matrix, `Lexicon.is_a`, over all
nodes. This file holds words and their relations only; events are in `events.py`, sentences in `surface.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# group -> leaves, most frequent leaf first; a leaf with "/" lists synonyms, which are the same node.
PEOPLE = {
    "医务人员": ["医生/大夫", "护士", "药师", "牙医"],
    "教育工作者": ["老师/教师", "教授", "校长", "辅导员"],
    "餐饮人员": ["厨师/大厨", "服务员", "面包师", "调酒师"],
    "文艺工作者": ["歌手", "画家", "作家/作者", "演员"],
    "运动员": ["球员", "泳手", "拳手", "棋手"],
    "公职人员": ["警察/民警", "法官", "市长", "邮差"],
    "技术人员": ["工程师", "程序员", "电工", "木匠"],
    "商人": ["店主", "摊贩", "经理", "老板"],
    "学生": ["小学生", "中学生", "大学生", "研究生"],
    "农民": ["果农", "菜农", "牧民", "渔夫"],
}
# super-group -> group -> leaves
OBJECTS = {
    "食物": {
        "水果": ["苹果", "香蕉", "葡萄", "西瓜"],
        "蔬菜": ["白菜", "萝卜", "黄瓜", "土豆/马铃薯"],
        "饮品": ["咖啡", "牛奶", "果汁", "绿茶"],
    },
    "文化用品": {
        "文具": ["铅笔", "钢笔", "橡皮", "尺子"],
        "书刊": ["小说", "词典/字典", "杂志", "漫画"],
        "乐器": ["钢琴", "吉他", "提琴", "笛子"],
    },
    "家居用品": {
        "家具": ["桌子", "椅子", "柜子", "沙发"],
        "电器": ["冰箱", "电视/电视机", "空调", "洗衣机"],
        "衣物": ["衬衫", "裙子", "外套/大衣", "帽子"],
    },
    "器具": {
        "车辆": ["汽车/轿车", "自行车/单车", "卡车", "摩托车"],
        "玩具": ["积木", "风筝", "气球", "拼图"],
        "工具": ["锤子", "锯子", "剪刀", "扳手"],
    },
}
PLACES = {
    "户外": ["公园", "广场", "街道", "操场"],
    "商业场所": ["超市", "商场", "菜市场", "书店"],
    "住宅": ["客厅", "厨房", "卧室", "阳台"],
    "交通场所": ["车站", "机场", "码头", "地铁站"],
    "公共机构": ["医院", "法院", "银行", "邮局"],
    "校园": ["教室", "图书馆", "食堂", "宿舍"],
}
TIMES = {
    "工作日": ["周一", "周二", "周三", "周四", "周五"],
    "周末": ["周六", "周日"],
    "春天": ["三月", "四月", "五月"],
    "夏天": ["六月", "七月", "八月"],
    "秋天": ["九月", "十月", "十一月"],
    "冬天": ["十二月", "一月", "二月"],
}
# Neighbours 2k and 2k+1 are opposites.
OBJECT_VERBS = [
    "购买/买下", "出售/卖掉", "打开/开启", "合上/关上", "修理/维修", "损坏/弄坏", "借走", "归还/还回", "找到/发现", "弄丢/丢失",
    "清洗/洗净", "弄脏", "制作/做好", "拆毁", "收下/接收", "拒收", "拿起", "放下", "藏起", "展示/展出",
    "组装", "拆开", "租用", "退掉",
]  # fmt: skip
PERSON_VERBS = [
    "表扬/夸奖", "批评/责备", "帮助/协助", "妨碍/阻挠", "拜访/探望", "躲开/避开", "邀请", "赶走", "欢迎", "冷落",
    "信任/相信", "怀疑", "感谢", "埋怨", "追上", "甩开", "喜欢/喜爱", "讨厌/厌恶",
]  # fmt: skip
ATTRIBUTES = ["新", "旧", "大", "小", "红色", "绿色", "白色", "黑色", "昂贵", "便宜"]
MANNERS = ["匆忙/急忙", "从容", "悄悄/偷偷", "公开", "高兴/开心", "难过", "独自", "再次"]
NUMERALS = {2: "两", 3: "三", 4: "四", 5: "五", 6: "六", 7: "七"}

SLOTS = ("agent", "verb", "object", "patient", "attribute", "quantity", "place", "time", "manner")
AGENT, VERB, OBJECT, PATIENT, ATTRIBUTE, QUANTITY, PLACE, TIME, MANNER = range(len(SLOTS))
LETTER_SLOTS = dict(
    zip("avopxqlsm", range(len(SLOTS)), strict=True)
)  # the letter that marks a slot in a sentence's tags
SOMEBODY, SOMETHING = "有人", "东西"


@dataclass(frozen=True)
class Lexicon:
    """All nodes of all slots in one id space; node 0 is "not said".

    `forms[i]`: the surface forms of node i; `slot[i]`: its slot (-1 for node 0); `level[i]`: 0 leaf, 1 group, 2
    super-group, 3 top; `parent[i]`: the next more general node (0 where leaving the slot out is the next step);
    `opposite[i]`: the opposite verb or attribute, or 0; `is_a[i, j]`: whatever is i is also j (reflexive; everything
    is_a 0); `chance[i, j]`: of the leaves that are i, the share that are j (1 where i is_a j; of "not said" all leaves
    of the slot); `similarity[i, j]` in [0, 1], symmetric; `leaves[s]`: ids of the leaves of slot s in order of
    frequency.
    """

    forms: tuple[tuple[str, ...], ...]
    slot: np.ndarray
    level: np.ndarray
    parent: np.ndarray
    opposite: np.ndarray
    is_a: np.ndarray
    chance: np.ndarray
    similarity: np.ndarray
    leaves: tuple[np.ndarray, ...]
    person_verb: np.ndarray
    exact: dict[int, int]  # n -> node "exactly n"
    at_least: dict[int, int]  # n -> node "at least n"
    several: int

    def __len__(self) -> int:
        return len(self.forms)

    def words(self) -> list[str]:
        """Every surface form, once, in a fixed order: the content words of the mini vocabulary."""
        return sorted({form for forms in self.forms for form in forms if form})


class _Builder:
    def __init__(self) -> None:
        self.forms: list[tuple[str, ...]] = [("",)]
        self.slot, self.level, self.parent = [-1], [0], [0]

    def add(self, text: str, slot: int, level: int, parent: int) -> int:
        self.forms.append(tuple(text.split("/")))
        self.slot.append(slot)
        self.level.append(level)
        self.parent.append(parent)
        return len(self.forms) - 1

    def tree(self, groups: dict[str, list[str]], slot: int, parent: int, level: int = 1) -> list[int]:
        leaves = []
        for group, members in groups.items():
            node = self.add(group, slot, level, parent)
            leaves += [self.add(member, slot, 0, node) for member in members]
        return leaves


def _interleave(ids: list[int], step: int = 4) -> np.ndarray:
    """Leaves group by group -> first of each group, second of each group, …: frequency falls within a group, not
    between groups.
    """
    return np.array([ids[i] for k in range(step) for i in range(k, len(ids), step)])


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """Build the lexicon (milliseconds; deterministic, no seed)."""
    builder = _Builder()
    leaves: list[np.ndarray] = [np.zeros(0, dtype=int)] * len(SLOTS)
    for role in (AGENT, PATIENT):
        top = builder.add(SOMEBODY if role == AGENT else "别人", role, 3, 0)
        leaves[role] = _interleave(builder.tree(PEOPLE, role, top))
    object_verbs = [builder.add(verb, VERB, 0, 0) for verb in OBJECT_VERBS]
    person_verbs = [builder.add(verb, VERB, 0, 0) for verb in PERSON_VERBS]
    leaves[VERB] = np.array(object_verbs + person_verbs)
    leaves[OBJECT] = _add_objects(builder)
    leaves[ATTRIBUTE] = np.array([builder.add(word, ATTRIBUTE, 0, 0) for word in ATTRIBUTES])
    several = builder.add("几个", QUANTITY, 1, 0)
    at_least = {n: builder.add(f"至少{word}个", QUANTITY, 1, 0) for n, word in NUMERALS.items() if n < 7}
    exact = {n: builder.add(f"{word}个", QUANTITY, 0, several if n > 2 else 0) for n, word in NUMERALS.items()}
    leaves[QUANTITY] = np.array(list(exact.values()))
    leaves[PLACE] = _interleave(builder.tree(PLACES, PLACE, 0))
    leaves[TIME] = np.array(builder.tree(TIMES, TIME, 0))
    leaves[MANNER] = np.array([builder.add(word, MANNER, 0, 0) for word in MANNERS])

    slot, parent = np.array(builder.slot), np.array(builder.parent)
    is_a = _relate(parent, several, at_least, exact)
    return Lexicon(
        forms=tuple(builder.forms),
        slot=slot,
        level=np.array(builder.level),
        parent=parent,
        opposite=_pair_opposites(len(builder.forms), (object_verbs, person_verbs, leaves[ATTRIBUTE].tolist())),
        is_a=is_a,
        chance=_share_leaves(slot, is_a, leaves),
        similarity=_compare_nodes(slot, is_a),
        leaves=tuple(leaves),
        person_verb=np.isin(np.arange(len(builder.forms)), person_verbs),
        exact=exact,
        at_least=at_least,
        several=several,
    )


def _add_objects(builder: _Builder) -> np.ndarray:
    """Add the taxonomy of things; returns its leaves in order of frequency."""
    top = builder.add(SOMETHING, OBJECT, 3, 0)
    leaves: list[int] = []
    for super_group, groups in OBJECTS.items():
        node = builder.add(super_group, OBJECT, 2, top)
        leaves += builder.tree(groups, OBJECT, node)
    return _interleave(leaves)


def _relate(parent: np.ndarray, several: int, at_least: dict[int, int], exact: dict[int, int]) -> np.ndarray:
    """`Lexicon.is_a`: by the taxonomy, and between quantities by their numbers."""
    size = len(parent)
    is_a = np.eye(size, dtype=bool)
    for node in range(size):
        ancestor = parent[node]
        while ancestor:
            is_a[node, ancestor] = True
            ancestor = parent[ancestor]
    for m, node in exact.items():
        for n, weaker in at_least.items():
            is_a[node, weaker] = m >= n
    for m, node in at_least.items():
        is_a[node, several] = m >= 3
        for n, weaker in at_least.items():
            is_a[node, weaker] = m >= n
    for n in (2, 3):
        is_a[several, at_least[n]] = True
    is_a[:, 0] = True
    return is_a


def _pair_opposites(size: int, groups: Iterable[list[int]]) -> np.ndarray:
    """`Lexicon.opposite`: neighbours 2k and 2k+1 of each group are opposites."""
    opposite = np.zeros(size, dtype=int)
    for nodes in groups:
        for first, second in zip(nodes[::2], nodes[1::2], strict=True):
            opposite[first], opposite[second] = second, first
    return opposite


def _share_leaves(slot: np.ndarray, is_a: np.ndarray, leaves: list[np.ndarray]) -> np.ndarray:
    """`Lexicon.chance`."""
    table = np.zeros(is_a.shape)
    for number, own in enumerate(leaves):
        nodes = np.concatenate([[0], np.flatnonzero(slot == number)])
        under = is_a[np.ix_(own, nodes)].astype(float)  # (leaves, nodes)
        table[np.ix_(nodes, nodes)] = (under.T @ under) / under.sum(0)[:, None]
    table[:, 0] = 1.0
    return table


def _compare_nodes(slot: np.ndarray, is_a: np.ndarray) -> np.ndarray:
    """Share of common ancestors, |anc(i) ∩ anc(j)| / |anc(i) ∪ anc(j)|, within a slot; 0.5 between said and not said; 0
    across slots.
    """
    ancestors = is_a.copy()
    ancestors[:, 0] = False
    common = (ancestors[:, None, :] & ancestors[None, :, :]).sum(-1).astype(float)
    union = (ancestors[:, None, :] | ancestors[None, :, :]).sum(-1)
    table = common / np.maximum(union, 1) * (slot[:, None] == slot[None, :])
    table[0, :] = table[:, 0] = 0.5
    table[0, 0] = 1.0
    return table
