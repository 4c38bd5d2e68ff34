"""Chinese: words, measure words, and how sentences are finished."""

import re
from typing import Any

from examples.bilingual_world import lists
from examples.bilingual_world.chinese_sentences import FACTS, QUESTIONS, SUMS, WRITINGS
from examples.bilingual_world.chinese_stories import STORIES, TALK
from examples.bilingual_world.language import Language, templates
from examples.bilingual_world.plan import Clock, Count, Mention, Pair

_NAMES = """
lina 莉娜 mara 玛拉 tilda 蒂尔达 nora 诺拉 ines 伊内丝 petra 佩特拉 sofi 索菲 greta 格蕾塔
ada 阿达 vera 薇拉 ilsa 伊尔莎 runa 鲁娜 cora 科拉 della 黛拉 elin 埃琳 freya 弗蕾娅 hanna 汉娜
ivy 艾薇 juna 朱娜 kaia 凯娅 lotte 洛特 mina 米娜 nella 内拉 odette 奥黛特 pia 皮娅 rosa 罗莎
sela 塞拉 tova 托娃 una 乌娜 willa 威拉 yana 雅娜 zoe 佐伊 alma 阿尔玛 bela 贝拉 celia 塞莉娅
dora 多拉 edda 埃达 flora 芙洛拉 gilda 吉尔达 hester 赫斯特 irma 伊尔玛 josie 乔茜 kira 基拉
luna 露娜 maeve 梅芙 nadia 纳迪娅 olga 奥尔佳 paula 保拉 tomas 托马斯 bram 布拉姆 emil 埃米尔
jonas 约纳斯 arlo 阿洛 casper 卡斯珀 dario 达里奥 edwin 埃德温 felix 费利克斯 gustav 古斯塔夫
hugo 雨果 ivan 伊万 jasper 贾斯珀 kolya 科利亚 lars 拉斯 milo 米洛 nils 尼尔斯 oskar 奥斯卡
pavel 帕维尔 quinn 奎因 rafi 拉菲 stefan 斯特凡 theo 西奥 ulric 乌尔里克 viktor 维克托
walter 沃尔特 yoram 约拉姆 zeno 泽诺 anton 安东 boris 鲍里斯 conrad 康拉德 dmitri 德米特里
elias 埃利亚斯 finn 芬恩 gideon 吉迪恩 henrik 亨里克 isak 伊萨克 jory 乔里 karel 卡雷尔 leon 莱昂
matteo 马泰奥 noel 诺埃尔 otto 奥托 pieter 彼得 ruben 鲁本 simon 西蒙 tobias 托比亚斯
wendel 温德尔 marlow 马洛 fenwick 芬威克 holt 霍尔特 brandt 勃兰特 castel 卡斯特尔 dorn 多恩
ebner 埃布纳 farrow 法罗 garrick 加里克 hollis 霍利斯 ivers 艾弗斯 jessop 杰索普 kessler 凯斯勒
lindqvist 林奎斯特 moray 莫雷 norrell 诺雷尔 oakes 奥克斯 pryce 普赖斯 rennick 伦尼克
sorrel 索雷尔 thorne 索恩 ullman 乌尔曼 vance 万斯 wick 威克 velmar 维尔马 orsel 奥塞尔
tolby 托尔比 marn 马恩 kesterin 凯斯特林 lowen 洛温 harrow_bay 哈罗湾 pellin 佩林 dunmere 邓米尔
sarova 萨罗瓦 brindle 布林德尔 quillan 奎兰 nerith 内里斯 foxley 福克斯利 galden 加尔登
isker 伊斯克 jorva 约尔瓦 rillstone 里尔斯通 umberly 昂伯利 wexcombe 韦克斯科姆 yarrow 亚罗
zelm 泽尔姆 cobblen 科布伦 elvane 埃尔万 ilva 伊尔瓦河 sorn 索恩河 merrit 梅里特河 tessa 泰莎河
bray 布雷河 lune 卢恩河 grey_crown 灰冠山 ansel 安塞尔山 pine_ridge 松岭 eagle_peak 鹰峰
long_hill 长丘 old_kern 老克恩山 biscuit_pet 饼干 pepper 胡椒 snowball 雪球 button 纽扣
shadow 影子 ginger 阿姜 pebble 石子 clover 三叶 whiskers 胡须 marble 弹珠 poppy 波比 rusty 小锈
star 星星 cloud 云朵 nutmeg 豆蔻 bean 豆豆
"""
_WORDS = """
village 村庄 town 小镇 port 港口 city 城市 north 北 northeast 东北 east 东 southeast 东南 south 南
southwest 西南 west 西 northwest 西北 monday 星期一 tuesday 星期二 wednesday 星期三
thursday 星期四 friday 星期五 saturday 星期六 sunday 星期天 spring 春天 summer 夏天 autumn 秋天
winter 冬天 morning 早上 afternoon 下午 evening 傍晚 red 红色 blue 蓝色 green 绿色 yellow 黄色
white 白色 black 黑色 brown 棕色 grey 灰色 purple 紫色 pink 粉色 mother 妈妈 father 爸爸
daughter 女儿 son 儿子 wife 妻子 husband 丈夫 older_sister 姐姐 older_brother 哥哥
younger_sister 妹妹 younger_brother 弟弟 metal 金属 wood 木头 cloth 布 paper 纸 glass 玻璃
clay 陶土 leather 皮革 wool 羊毛 wax 蜡 fruit 水果 vegetable 蔬菜 baked 糕点面食 sweets 甜食
sweet 甜 sour 酸 salty 咸 fresh 清爽 mild 清淡 grass 草 small_fish 小鱼 seeds 种子 nuts 坚果
insects 昆虫 meat 肉 leaves 树叶 nectar 花蜜 scraps 剩饭剩菜 farm 农场里 woods 树林里 pond 池塘边
house_home 人的家里 burrow 洞穴里 mountains 山里 meadow 草地上 barn 谷仓里 baker 面包师
teacher 教师 nurse 护士 doctor 医生 fisher 渔民 farmer 农民 carpenter 木匠 blacksmith 铁匠
tailor 裁缝 librarian 图书管理员 postman 邮递员 gardener 园丁 shepherd 牧羊人 miller 磨坊工
potter 陶匠 painter 画家 clockmaker 钟表匠 cook 厨师 ferryman 摆渡人 beekeeper 养蜂人 weaver 织工
musician 乐师 builder 建筑工 guide 讲解员 under_bench 长凳底下 behind_door 门背后
between_stones 两块石头中间 tall_grass 高高的草丛里 beside_well 老井旁边 under_leaves 一堆落叶下面
on_wall 一堵矮墙上 basket_bottom 篮子底下 behind_barrel 木桶后面 under_stairs 楼梯下面
play_flute 吹笛子 swim 游泳 go_fishing 钓鱼 paint 画画 read_stories 读老故事 dance 跳舞
climb_hills 爬山 collect_stamps 集邮 fly_kites 放风筝 bake_cakes 烤蛋糕 sing 唱歌 play_chess 下棋
ride_bicycle 骑自行车 grow_flowers 种花 watch_birds 看鸟 write_poems 写诗 row_boat 划船
mend_clocks 修钟表 tell_jokes 讲笑话 make_puppets 做木偶 look_stars 看星星 play_drum 打鼓
pick_mushrooms 采蘑菇 draw_maps 画地图 sad 难过 disappointed 失望 lonely 孤单 worried 担心
ashamed 羞愧 afraid 害怕 angry 生气 nervous 紧张 tired 疲惫 bored 无聊 happy 高兴 proud 自豪
excited 兴奋 grateful 感激 surprised 惊喜 relieved 轻松 calm 平静 soup 汤 salad 沙拉 stew 炖菜
"""
# The measure word stands before the noun.
_NOUNS = """
kettle 把水壶 key 把钥匙 bicycle 辆自行车 clock 座钟 ring 枚戒指 bell 个铃铛 hammer 把锤子
saw 把锯子 spade 把铁锹 pot 口锅 spoon 把勺子 knife 把小刀 needle 根针 coin_box 个存钱罐
ladder 架梯子 flute 支笛子 violin 把小提琴 guitar 把吉他 boat 条小船 chair 把椅子 table 张桌子
bench 条长凳 broom 把扫帚 box 个盒子 puppet 个木偶 pencil 支铅笔 drum 面鼓 umbrella 把雨伞
hat 顶帽子 coat 件外套 tent 顶帐篷 flag 面旗子 doll 个布娃娃 bag 个背包 book 本书 kite 只风筝
map 张地图 notebook 本笔记本 letter 封信 parcel 个包裹 painting 幅画 lantern 盏灯笼 lamp 盏灯
mirror 面镜子 bottle 个瓶子 telescope 架望远镜 cup 个杯子 plate 个盘子 bowl 个碗 vase 个花瓶
ball 个皮球 boot 只靴子 belt 条皮带 scarf 条围巾 blanket 条毯子 glove 只手套 candle 支蜡烛
apple 个苹果 pear 个梨 plum 个李子 peach 个桃子 lemon 个柠檬 cherry 颗樱桃 grape 颗葡萄
melon 个甜瓜 banana 根香蕉 carrot 根胡萝卜 potato 个土豆 cabbage 棵卷心菜 tomato 个西红柿
cucumber 根黄瓜 pumpkin 个南瓜 bread 块面包 bun 个小圆面包 cake 块蛋糕 pie 个馅饼 biscuit 块饼干
honey 罐蜂蜜 jam 罐果酱 cheese 块奶酪 egg 个鸡蛋 fish 条鱼 mushroom 朵蘑菇 dumpling 个饺子
noodles 碗面条 rice 碗米饭 pancake 张煎饼 cat 只猫 dog 条狗 horse 匹马 cow 头牛 goat 只山羊
sheep 只绵羊 rabbit 只兔子 duck 只鸭子 goose 只鹅 hen 只母鸡 owl 只猫头鹰 fox 只狐狸 deer 头鹿
bear 头熊 squirrel 只松鼠 hedgehog 只刺猬 frog 只青蛙 turtle 只乌龟 bee 只蜜蜂 butterfly 只蝴蝶
spider 只蜘蛛 swallow 只燕子 donkey 头驴 pig 头猪 mouse 只老鼠 snake 条蛇 lamb 只小羊
kitten 只小猫 puppy 只小狗 duckling 只小鸭 coin 枚铜币 child 个孩子 tree 棵树
"""
# What follows the bar is added after 在.
_SPOTS = """
bakery 面包房 school 学校|里 hospital 医院|里 harbour 码头|上 farmyard 农家院子|里
workshop 作坊|里 smithy 铁匠铺|里 shop 店铺|里 library 图书馆|里 post_office 邮局|里
garden 花园|里 pasture 牧场|上 mill 磨坊|里 studio 画室|里 inn 客栈|里 orchard 果园|里
theatre 剧院|里 yard 工地|上 museum 博物馆|里 market 集市|上 park 公园|里 bridge 桥头
square 广场|上 station 车站 well 井边 forest 森林|里 lake 湖边 field 田野|里
"""
_DUTIES = """
baker 在日出以前烤好面包 teacher 教孩子们读书 nurse 照顾病人 doctor 给人看病 fisher 撒网捕鱼
farmer 耕田种地 carpenter 做桌子和门 blacksmith 钉马掌、打铁器 tailor 缝衣服 librarian 整理图书
postman 挨家挨户送信 gardener 给花浇水 shepherd 看守羊群 miller 磨面粉 potter 用陶土做碗
painter 画岛上的风景 clockmaker 修理钟表 cook 为客人做饭 ferryman 送旅客过河 beekeeper 采收蜂蜜
weaver 织毯子 musician 为跳舞的人伴奏 builder 盖房子、砌墙 guide 带游客参观
"""
_USES = """
kettle 烧水 key 开门 bicycle 骑到邻近的镇上 clock 看时间 ring 表示诺言 bell 召集大家 hammer 钉钉子
saw 锯木头 spade 翻土 pot 做饭 spoon 搅拌茶水 needle 缝纽扣 knife 削水果 coin_box 存钱
ladder 爬上屋顶 flute 吹曲子 violin 在舞会上演奏 guitar 给歌伴奏 boat 过河 chair 坐 table 吃饭写字
bench 歇脚 broom 扫地 box 装玩具 puppet 演故事 pencil 写字画画 drum 打节拍 umbrella 挡雨
hat 遮太阳 coat 挡风保暖 tent 在野外过夜 flag 发信号 doll 陪孩子玩 bag 装东西 book 学习新知识
kite 在风里玩 map 找路 notebook 记下想法 letter 给朋友报消息 parcel 寄礼物 painting 装饰墙壁
lantern 照路 lamp 照亮房间 mirror 照见自己的脸 bottle 装水 telescope 看星星 cup 喝茶 plate 盛菜
bowl 喝汤 vase 插花 ball 和朋友一起玩 boot 走泥路 belt 系裤子 scarf 围脖子 blanket 盖着睡觉
glove 给手保暖 candle 在黑暗里照明
"""
_DIGITS = "零一二三四五六七八九"


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


_PLAIN = _pairs(_NAMES) | _pairs(_WORDS)
_PLAIN |= {f"{name}.duty": words for name, words in _pairs(_DUTIES).items()}
_PLAIN |= {f"{name}.use": words for name, words in _pairs(_USES).items()}
_PLACES = {name: words.partition("|") for name, words in _pairs(_SPOTS).items()}
_MEASURED = {name: (words[0], words[1:]) for name, words in _pairs(_NOUNS).items()}


def say(value: Any, form: str) -> str:
    """Chinese for ``value``. Forms: of a person ``of``, ``he``, ``his``, ``self``; of a noun ``a``
    (one of it), ``the``, ``m`` (its measure word); of a spot ``at``; of a number ``d`` (digits),
    ``plain``."""
    match value:
        case Mention():
            return _person(value, form)
        case Count(number, "year" | "day" as unit):
            return f"{_measured_number(number)}{'岁' if unit == 'year' else '天'}"
        case Count(number, thing):
            measure, noun = _MEASURED[thing]
            return measure if form == "m" else f"{_measured_number(number)}{measure}{noun}"
        case Clock(hour, minute):
            return f"{hour}:{minute:02d}" if form == "d" else _clock(hour, minute)
        case int():
            return _integer(value, form)
        case Pair(one, other):
            return "她们" if one.woman and other.woman else "他们"
    if value in _PLACES:
        place, _, side = _PLACES[value]
        return f"在{place}{side}" if form in ("at", "answer") else place
    if value in _MEASURED:
        return _noun(*_MEASURED[value], form)
    return f"{_PLAIN[value]}部" if form == "answer" and value in lists.DIRECTIONS else _PLAIN[value]


def _person(who: Mention, form: str) -> str:
    pronoun = {"i": "我", "you": "你"}.get(who.how, "她" if who.person.woman else "他")
    plain = who.how in ("again", "i", "you")
    name = pronoun if plain else _PLAIN[who.person.name]
    if who.how == "full":
        name = f"{name}·{_PLAIN[who.person.surname]}"
    return {"of": f"{name}的", "he": pronoun, "his": f"{pronoun}的"}.get(form, name)


def _noun(measure: str, noun: str, form: str) -> str:
    return {"a": f"一{measure}{noun}", "the": f"那{measure}{noun}", "m": measure}.get(form, noun)


def _integer(number: int, form: str) -> str:
    """``plain`` counts (二), as against numbers before a measure word (两)."""
    if form == "d" or number > 9999:
        return str(number)
    return _number(number) if form == "plain" else _measured_number(number)


def _measured_number(number: int) -> str:
    return "两" if number == 2 else _number(number)


def _number(number: int) -> str:
    """0 to 9999 in words: 一百零五, 二十三, 十二."""
    if number < 10:
        return _DIGITS[number]
    words, gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // unit % 10
        if digit:
            words += ("零" if gap and words else "") + _DIGITS[digit] + name
        gap = not digit
    return words.removeprefix("一") if 10 <= number < 20 else words


def _clock(hour: int, minute: int) -> str:
    part = "上午" if hour < 12 else "中午" if hour == 12 else "下午" if hour < 18 else "晚上"
    part = "早上" if hour < 9 else part
    shown = _measured_number((hour - 1) % 12 + 1)
    return f"{part}{shown}点" + {0: "", 15: "一刻", 30: "半", 45: "三刻"}[minute]


_DOUBLED = re.compile(r"([，。！？：；、])\1+")


def _finish(text: str) -> str:
    return _DOUBLED.sub(r"\1", text)


LANGUAGE = Language(
    code="zh",
    space="",
    sentences=templates(FACTS, QUESTIONS, SUMS, WRITINGS, TALK, STORIES),
    say=say,
    finish=_finish,
)
