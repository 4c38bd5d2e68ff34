"""Arabic words for the identifiers of the world.

In the tables ``_`` stands for a space between a noun and its adjective, ``~`` for one inside a
genitive pair, of which only the second half takes the article.
"""

from dataclasses import dataclass

_NAMES = """
lina لينا mara مارا tilda تيلدا nora نورا ines إينيس petra بيترا sofi صوفي greta غريتا ada آدا
vera فيرا ilsa إلسا runa رونا cora كورا della ديلا elin إيلين freya فريا hanna هانا ivy آيفي
juna جونا kaia كايا lotte لوته mina مينا nella نيلا odette أوديت pia بيا rosa روزا sela سيلا
tova توفا una أونا willa ويلا yana يانا zoe زوي alma ألما bela بيلا celia سيليا dora دورا edda إيدا
flora فلورا gilda غيلدا hester هيستر irma إرما josie جوزي kira كيرا luna لونا maeve ميف nadia ناديا
olga أولغا paula باولا tomas توماس bram برام emil إميل jonas جوناس arlo آرلو casper كاسبر
dario داريو edwin إدوين felix فيليكس gustav غوستاف hugo هوغو ivan إيفان jasper جاسبر kolya كوليا
lars لارس milo ميلو nils نيلس oskar أوسكار pavel بافل quinn كوين rafi رافي stefan ستيفان theo ثيو
ulric أولريك viktor فيكتور walter والتر yoram يورام zeno زينو anton أنطون boris بوريس conrad كونراد
dmitri ديمتري elias إلياس finn فين gideon جدعون henrik هنريك isak إيساك jory جوري karel كاريل
leon ليون matteo ماتيو noel نويل otto أوتو pieter بيتر ruben روبن simon سيمون tobias توبياس
wendel ويندل marlow مارلو fenwick فينويك holt هولت brandt براندت castel كاستل dorn دورن ebner إبنر
farrow فارو garrick غاريك hollis هوليس ivers إيفرس jessop جيسوب kessler كيسلر lindqvist ليندكفيست
moray موراي norrell نوريل oakes أوكس pryce برايس rennick رينيك sorrel سوريل thorne ثورن
ullman أولمان vance فانس wick ويك velmar فيلمار orsel أورسل tolby تولبي marn مارن kesterin كيسترين
lowen لوين harrow_bay هاروباي pellin بيلين dunmere دنمير sarova ساروفا brindle بريندل
quillan كويلان nerith نيريث foxley فوكسلي galden غالدن isker إيسكر jorva جورفا rillstone ريلستون
umberly أمبرلي wexcombe ويكسكوم yarrow يارو zelm زيلم cobblen كوبلن elvane إلفين ilva نهر_إيلفا
sorn نهر_سورن merrit نهر_ميريت tessa نهر_تيسا bray نهر_براي lune نهر_لون
grey_crown جبل_التاج_الرمادي ansel جبل_أنسل pine_ridge جبل_الصنوبر eagle_peak جبل_النسر
long_hill التل_الطويل old_kern جبل_كيرن_القديم biscuit_pet بسكويت pepper فلفل snowball ثلج
button زر shadow ظل ginger زنجبيل pebble حصاة clover برسيم whiskers شوارب marble رخام poppy ياسمين
rusty صدأ star نجمة cloud غيمة nutmeg جوزة bean فول
"""
_WORDS = """
north الشمال northeast الشمال_الشرقي east الشرق southeast الجنوب_الشرقي south الجنوب
southwest الجنوب_الغربي west الغرب northwest الشمال_الغربي monday يوم_الاثنين tuesday يوم_الثلاثاء
wednesday يوم_الأربعاء thursday يوم_الخميس friday يوم_الجمعة saturday يوم_السبت sunday يوم_الأحد
spring الربيع summer الصيف autumn الخريف winter الشتاء morning صباح afternoon عصر evening مساء
mother والدة father والد daughter ابنة son ابن wife زوجة husband زوج older_sister شقيقة_كبرى
older_brother شقيق_أكبر younger_sister شقيقة_صغرى younger_brother شقيق_أصغر metal المعدن
wood الخشب cloth القماش paper الورق glass الزجاج clay الفخار leather الجلد wool الصوف wax الشمع
fruit الفواكه vegetable الخضروات baked المخبوزات sweets الحلويات sweet حلو sour حامض salty مالح
fresh منعش mild معتدل grass العشب small_fish الأسماك_الصغيرة seeds البذور nuts المكسرات
insects الحشرات meat اللحم leaves أوراق_الشجر nectar الرحيق scraps بقايا_الطعام farm في_المزرعة
woods في_الغابة pond عند_البركة house_home في_بيوت_الناس burrow في_جحر mountains في_الجبال
meadow في_المروج barn في_الحظيرة under_bench تحت_مقعد behind_door خلف_باب between_stones بين_حجرين
tall_grass وسط_العشب_الطويل beside_well بجانب_بئر_قديمة under_leaves تحت_كومة_من_الأوراق
on_wall فوق_جدار_منخفض basket_bottom في_قاع_سلة behind_barrel خلف_برميل under_stairs تحت_الدرج
soup حساء salad سلطة stew يخنة
"""
# The masculine; the feminine adds an ending, but for six colours.
_PEOPLE_AND_COLOURS = """
baker خباز teacher معلم nurse ممرض doctor طبيب fisher صياد farmer مزارع carpenter نجار
blacksmith حداد tailor خياط librarian أمين~مكتبة postman ساعي~بريد gardener بستاني
shepherd راعي~غنم miller طحان potter خزاف painter رسام clockmaker ساعاتي cook طباخ ferryman ملاح
beekeeper نحال weaver نساج musician موسيقي builder بنّاء guide مرشد sad حزين disappointed محبط
lonely وحيد worried قلق ashamed محرج afraid خائف angry غاضب nervous متوتر tired متعب bored ضجر
happy سعيد proud فخور excited متحمس grateful ممتن surprised مندهش relieved مرتاح calm هادئ red أحمر
blue أزرق green أخضر yellow أصفر white أبيض black أسود brown بني grey رمادي purple بنفسجي pink وردي
"""
_SIX_COLOURS = """
أحمر حمراء أزرق زرقاء أخضر خضراء أصفر صفراء أبيض بيضاء أسود سوداء
"""
# One, several.
_COUNTED = """
kettle غلاية غلايات key مفتاح مفاتيح bicycle دراجة دراجات clock ساعة ساعات ring خاتم خواتم
bell جرس أجراس hammer مطرقة مطارق saw منشار مناشير spade مجرفة مجارف pot طنجرة طناجر
spoon ملعقة ملاعق knife سكين سكاكين needle إبرة إبر coin_box حصالة حصالات ladder سلم سلالم
flute ناي نايات violin كمان كمانات guitar قيثارة قيثارات boat قارب قوارب chair كرسي كراسي
table طاولة طاولات bench مقعد مقاعد broom مكنسة مكانس box صندوق صناديق
puppet دمية_متحركة دمى_متحركة pencil قلم أقلام drum طبل طبول umbrella مظلة مظلات hat قبعة قبعات
coat معطف معاطف tent خيمة خيام flag راية رايات doll دمية دمى bag حقيبة حقائب book كتاب كتب
kite طائرة_ورقية طائرات_ورقية map خريطة خرائط notebook دفتر دفاتر letter رسالة رسائل
parcel طرد طرود painting لوحة لوحات lantern فانوس فوانيس lamp مصباح مصابيح mirror مرآة مرايا
bottle زجاجة زجاجات telescope منظار مناظير cup كوب أكواب plate طبق أطباق bowl صحن صحون
vase مزهرية مزهريات ball كرة كرات boot جزمة جزمات belt حزام أحزمة scarf وشاح أوشحة
blanket بطانية بطانيات glove قفاز قفازات candle شمعة شموع cat قطة قطط dog كلب كلاب
horse حصان أحصنة cow بقرة بقرات goat عنزة عنزات sheep خروف خراف rabbit أرنب أرانب duck بطة بطات
goose إوزة إوزات hen دجاجة دجاجات owl بومة بومات fox ثعلب ثعالب deer غزال غزلان bear دب دببة
squirrel سنجاب سناجب hedgehog قنفذ قنافذ frog ضفدع ضفادع turtle سلحفاة سلاحف bee نحلة نحلات
butterfly فراشة فراشات spider عنكبوت عناكب swallow سنونوة سنونوات donkey حمار حمير
pig خنزير خنازير mouse فأر فئران snake ثعبان ثعابين lamb حمل حملان kitten هريرة هريرات
puppy جرو جراء coin درهم دراهم child طفل أطفال tree شجرة أشجار row صف صفوف day يوم أيام
year سنة سنوات month شهر أشهر hour ساعة ساعات minute دقيقة دقائق kilometre كيلومتر كيلومترات
leg رجل أرجل piece قطعة قطع person شخص أشخاص visitor زائر زوار roof سقف أسقف village قرية قرى
town بلدة بلدات port ميناء موانئ city مدينة مدن
"""
# In general, one, several.
_FOODS = """
apple تفاح تفاحة تفاحات pear إجاص إجاصة إجاصات plum برقوق برقوقة برقوقات peach خوخ خوخة خوخات
lemon ليمون ليمونة ليمونات cherry كرز كرزة كرزات melon بطيخ بطيخة بطيخات banana موز موزة موزات
carrot جزر جزرة جزرات cabbage ملفوف ملفوفة ملفوفات cucumber خيار خيارة خيارات
pumpkin يقطين يقطينة يقطينات bun صمون صمونة صمونات cake كعك كعكة كعكات pie فطائر فطيرة فطائر
egg بيض بيضة بيضات fish سمك سمكة سمكات
"""
# In general, and what it is counted in: one, several.
_PORTIONS = """
grape عنب حبة حبات potato بطاطس حبة حبات tomato طماطم حبة حبات mushroom فطر حبة حبات
bread خبز رغيف أرغفة biscuit بسكويت قطعة قطع cheese جبن قطعة قطع honey عسل جرة جرار
jam مربى جرة جرار dumpling كبة قطعة قطع noodles معكرونة طبق أطباق rice أرز طبق أطباق
pancake قطائف قطعة قطع duckling بط فرخ فراخ
"""
# At which one is; in but where another preposition stands before the bar.
_SPOTS = """
bakery المخبز school المدرسة hospital المستشفى harbour الميناء farmyard فناء_المزرعة
workshop الورشة smithy دكان_الحداد shop المتجر library المكتبة post_office مكتب_البريد
garden الحديقة pasture المرعى mill المطحنة studio المرسم inn النزل orchard البستان theatre المسرح
yard موقع_البناء museum المتحف market السوق park المتنزه bridge على|الجسر square الساحة
station المحطة well عند|البئر forest الغابة lake عند|البحيرة field الحقل
"""
# Verbal nouns, all definite.
_ACTIONS = """
play_flute العزف_على_الناي swim السباحة go_fishing صيد_السمك paint الرسم
read_stories قراءة_القصص_القديمة dance الرقص climb_hills تسلق_التلال collect_stamps جمع_الطوابع
fly_kites تطيير_الطائرات_الورقية bake_cakes خبز_الكعك sing الغناء play_chess لعب_الشطرنج
ride_bicycle ركوب_الدراجة grow_flowers زراعة_الأزهار watch_birds مراقبة_الطيور
write_poems كتابة_الشعر row_boat التجديف_بالقارب mend_clocks إصلاح_الساعات tell_jokes رواية_النكات
make_puppets صنع_الدمى_المتحركة look_stars تأمل_النجوم play_drum قرع_الطبل
pick_mushrooms جمع_الفطر draw_maps رسم_الخرائط
"""
_DUTIES = """
baker خبز_الأرغفة_قبل_شروق_الشمس teacher تعليم_الأطفال_القراءة nurse العناية_بالمرضى
doctor علاج_المرضى fisher جمع_الشباك farmer حرث_الحقول carpenter صنع_الطاولات_والأبواب
blacksmith صنع_الأدوات_وحدوات_الخيل tailor خياطة_المعاطف librarian ترتيب_الكتب
postman حمل_الرسائل_من_باب_إلى_باب gardener سقي_الأزهار shepherd رعي_الغنم miller طحن_الحبوب
potter تشكيل_الأواني_من_الفخار painter رسم_مناظر_الجزيرة clockmaker إصلاح_الساعات
cook الطبخ_للضيوف ferryman نقل_المسافرين_عبر_الماء beekeeper جمع_العسل weaver نسج_البطانيات
musician العزف_للراقصين builder بناء_البيوت_والجدران guide إرشاد_الزوار
"""
_USES = """
kettle غلي_الماء key فتح_الباب bicycle الذهاب_إلى_البلدة_المجاورة clock معرفة_الوقت
ring التعبير_عن_الوعد bell دعوة_الناس_إلى_الاجتماع hammer دق_المسامير saw قطع_الخشب
spade حفر_الحديقة pot طبخ_الطعام spoon تحريك_الشاي needle تثبيت_الأزرار knife تقشير_الفواكه
coin_box ادخار_المال ladder الصعود_إلى_السطح flute عزف_الألحان violin العزف_في_الحفلات
guitar مرافقة_الأغاني boat عبور_النهر chair الجلوس table تناول_الطعام bench الاستراحة_في_المتنزه
broom كنس_الأرض box حفظ_الألعاب puppet تمثيل_الحكايات pencil الكتابة_والرسم drum ضبط_الإيقاع
umbrella الاحتماء_من_المطر hat الاحتماء_من_الشمس coat الوقاية_من_الريح tent النوم_في_الخلاء
flag إعطاء_الإشارات doll اللعب_في_البيت bag حمل_المشتريات book تعلم_أشياء_جديدة
kite اللعب_في_الريح map معرفة_الطريق notebook تدوين_الأفكار letter إرسال_الأخبار_إلى_صديق
parcel إرسال_الهدايا painting تزيين_الجدار lantern إنارة_الدرب lamp إنارة_الغرفة mirror رؤية_الوجه
bottle حفظ_الماء telescope رصد_النجوم cup شرب_الشاي plate تقديم_الطعام bowl شرب_الحساء
vase وضع_الأزهار ball اللعب_مع_الأصدقاء boot المشي_في_الوحل belt شد_السروال scarf تدفئة_الرقبة
blanket التدفئة_في_الليل glove تدفئة_اليدين candle الإضاءة_في_الظلام
"""


@dataclass(frozen=True)
class Noun:
    """What may be counted; ``whole`` is its general sense, with the article."""

    one: str
    several: str
    whole: str
    tail: str = ""
    """Stands behind one and several: of bread."""

    @property
    def feminine(self) -> bool:
        """As verbs and adjectives agree with one of it."""
        return self.one.split()[0].endswith("ة") or self.one == "رجل"


def definite(phrase: str) -> str:
    """With the article, on every word that lacks it."""
    return " ".join(map(_with_article, phrase.split()))


def _with_article(word: str) -> str:
    if "~" in word:
        return word.replace("~", " ال")
    return word if word.startswith("ال") else f"ال{word}"


def _rows(text: str, width: int) -> dict[str, list[str]]:
    words = [word.replace("_", " ") for word in text.split()]
    names = text.split()[::width]
    return {name: words[width * i + 1 : width * (i + 1)] for i, name in enumerate(names)}


def _pairs(text: str, suffix: str = "") -> dict[str, str]:
    return {f"{name}{suffix}": word for name, (word,) in _rows(text, 2).items()}


PLAIN = _pairs(_NAMES) | _pairs(_WORDS) | _pairs(_ACTIONS)
PLAIN |= _pairs(_DUTIES, ".duty") | _pairs(_USES, ".use")
ADJECTIVES = _pairs(_PEOPLE_AND_COLOURS)
FEMININE_COLOURS = _pairs(_SIX_COLOURS)
SPOTS = {
    name: (before or "في", place)
    for name, words in _pairs(_SPOTS).items()
    for before, _, place in [words.rpartition("|")]
}
NOUNS = {name: Noun(one, more, definite(one)) for name, (one, more) in _rows(_COUNTED, 3).items()}
NOUNS |= {
    name: Noun(one, more, definite(whole)) for name, (whole, one, more) in _rows(_FOODS, 4).items()
}
NOUNS |= {
    name: Noun(one, more, definite(whole), f" من {definite(whole)}")
    for name, (whole, one, more) in _rows(_PORTIONS, 4).items()
}
