"""Arabic sentences about facts, sums and everyday writing (see language.py for the notation)."""

FACTS = """
home: {a:يسكن/تسكن/أسكن} {a} في {t}.
home: {a:of بيت} في {t}.
age: {a:of عمر} {n:year}.
age: {a:أتم/أتمت/أتممت} {a} {n:acc year} [قبل أيام|قبل وقت قصير].
food: {a:يحب/تحب/أحب} {a} {f} أكثر من [أي طعام آخر|كل الأطعمة].
food: لا شيء {a:of عند} [ألذ|أطيب] من {f}.
colour: {a:of لون مفضل} هو {c}.
colour: {a:يفضل/تفضل/أفضل} {a} اللون {c} على سائر الألوان.
hobby: {a:يحب/تحب/أحب} {a} {h}.
hobby: {a:يقضي/تقضي/أقضي} {a} وقت {a:his فراغ} في {h}.
hobby: {a:of هواية مفضلة} هي {h}.
pet: {a:of عند} {k:a} {k:اسمه/اسمها} {q}.
pet: {a:يربي/تربي/أربي} {a} {k:acc} {k:اسمه/اسمها} {q}.
wish: {a:يتمنى/تتمنى/أتمنى} {a} أن {a:يرى/ترى/أرى} {t} يومًا ما.
wish: {a:of حلم} أن {a:يزور/تزور/أزور} {t}.
friend: {a:of {b:صديق مقرب/صديقة مقربة}} {b:هو/هي} {b}.
friend: {a:top} {a:يعرف/تعرف/أعرف} {b} منذ سنوات، {b:وهو/وهي} أقرب الناس {a:إليه/إليها/إليّ}.
job: {a:يعمل/تعمل/أعمل} {a} {j:acc {a:g}} {w:at}.
job: {a:top} {j:a {a:g}}، {a:ويعمل/وتعمل/وأعمل} {w:at}.
duty: {a:of عمل} هو {d}.
duty: {a:يستيقظ/تستيقظ/أستيقظ} {a} مبكرًا كل [يوم|صباح] من أجل {d}.
kin: {b} {b:هو/هي} {a:of {r}}.
kin: اسم {a:of {r}} {b}.
portrait.start: [الجميع|الجميع تقريبًا] في {t} يعرفون {a}.
portrait.start: [دعني أحدثك عن|سأحدثك اليوم عن|هذه حكاية] {a} من {t}.
portrait.start: {a} من أهل {t}.
portrait.end: إذا التقيت {a} {s:at}، [فسلم {a:عليه/عليها}|فأبلغ{a:ه/ها} سلامي].
portrait.end: كثيرًا ما [يرى|يجد] الناس {a} {s:at}.
town.kind: {t} {k:a} [{k:صغير/صغيرة}|{k:هادئ/هادئة}|{k:جميل/جميلة}|] في {d} من جزيرة أورين.
town.kind: في {d} من الجزيرة {k:يقع/تقع} {k:a} {k:اسمه/اسمها} {t}.
town.people: يسكن في {t} [نحو|قرابة] {n:d} نسمة.
town.people: عدد سكان {t} [نحو|قرابة] {n:d} نسمة.
town.age: مضت على بناء {t} {n:year}.
town.age: تأسست {t} قبل {n:gen year}.
town.product: تشتهر {t} ب{x:s}.
town.product: يأتي [المسافرون|الناس من أنحاء الجزيرة] إلى {t} لشراء {x:s}.
town.river: النهر الذي يمر ب{t} هو {r}.
town.river: يجري {r} [عبر|بجوار] {t}.
town.hill: يرتفع {m} فوق {t}.
town.hill: يمكنك أن ترى {m} من {t} [في الأيام الصافية|من بعيد].
town.market: يقام السوق في {t} {w}.
town.market: في {t} سوق {w} من كل أسبوع.
town.near: أقرب مكان إلى {t} هو {u}، على بعد {n:gen kilometre} نحو {d}.
town.near: المكان التالي بعد {t} هو {u}، على بعد {n:gen kilometre} فقط إلى {d} منها.
town.way: المسافة من {t} إلى {u} {n:kilometre} نحو {d}.
town.way: من أراد الذهاب من {t} إلى {u} فعليه أن يقطع {n:acc kilometre} نحو {d}.
town.spot: يحب أهل {t} أن يلتقوا {s:at}.
town.spot: قلب {t} هو {s}.
town.resident: {a:يسكن/تسكن} هنا {j:{a:g}} {a}.
town.resident: من سكان {t} {a}، {a:ويعمل/وتعمل} {j:acc {a:g}}.
season.spring: في الربيع [تخضر الحقول حول|تمتلئ بالأزهار الحقول حول] {t}.
season.spring: في الربيع [تعود السنونوات إلى|تزهر أشجار الكرز في كل أنحاء] {t}.
season.summer: في صيف {t} [تكون الليالي دافئة ويجلس الناس خارج بيوتهم|يسبح الأطفال في النهر].
season.summer: الصيف في {t} [طويل وجاف|حار، لكن أمسياته لطيفة].
season.autumn: في الخريف [تحمر الأوراق وتصفر|يخيم الضباب فوق السطوح] في {t}.
season.autumn: حين يأتي الخريف تفوح في {t} رائحة [التفاح|دخان الحطب].
season.winter: في الشتاء [تهدأ {t} تحت الثلج|يشتد البرد في {t} ويتصاعد الدخان من كل مدخنة].
season.winter: في شتاء {t} [تتجمد البرك|تقصر الأيام وتطول الحكايات].
thing.use: {x} {x:مفيد/مفيدة} ل{u}.
thing.use: {x:يُستعمل/تُستعمل} {x} ل{u}.
thing.material: {x:يُصنع/تُصنع} {x} [عادة|غالبًا|في الغالب] من {m}.
thing.owner: {a:يملك/تملك} {a} {x:acc} {c:acc {x:g}}.
thing.owner: {a:of {x:a}} {x:لونه/لونها} {c:a}.
animal.legs: {k} حيوان {n:legs}.
animal.legs: عدد أرجل {k} {n}.
animal.eats: {k:[يأكل/تأكل|يحب/تحب]} {k} {e}.
animal.lives: {k:يعيش/تعيش} {k} [عادة|في العادة] {l}.
animal.seen: {a:رأى/رأت} {a} ذات مرة {k:acc} {s:at}.
animal.seen: في أحد الأيام [{k:مر/مرت} {k:a} ب{a}|{k:نظر/نظرت} {k:a} بفضول إلى {a}] {s:at}.
food.kind: {f} نوع من {k}.
food.taste: طعم {f} {e}.
food.colour: لون {f} {c:a} [عادة|في الغالب|].
food.bought: كثيرًا ما {a:يشتري/تشتري} {a} {k} [في طريق {a:his عودة} إلى البيت|{s:at}].
job.place: يعمل {j} {w:at}.
job.place: تجد {j} {w:at}.
compare.age: {a} أكبر من {b} ب{n:gen}.
compare.age: إذن {b} أصغر من {a} ب{n:gen}.
compare.same_age: {a} و{b} في العمر نفسه تمامًا.
compare.same_food: يحب كل من {a} و{b} {v} أكثر من أي طعام آخر.
compare.same_colour: اللون المفضل عند {a} و{b} واحد، وهو {v}.
compare.same_hobby: يحب كل من {a} و{b} {v}.
compare.food: {a:يفضل/تفضل} {a} {f}، بينما {b:يفضل/تفضل} {b} {g}.
compare.food: أكثر ما {a:يحبه/تحبه} {a} هو {f}، أما {b} {b:فيحب/فتحب} {g}.
compare.people: سكان {t} أكثر من سكان {u} بـ{n:d} نسمة.
compare.people: يزيد عدد سكان {t} على عدد سكان {u} بـ{n:d} نسمة.
compare.same_people: عدد سكان {t} مثل عدد سكان {u}.
compare.way: تقع {t} على بعد {n:gen kilometre} إلى {d} من {u}.
riddle.start: {a:طرح/طرحت} {a} على {b} لغزًا:
riddle.start: {a:قال/قالت} {a} ل{b}: «{b:احزر/احزري} ما هذا!»
riddle.legs: عدد أرجله {n}.
riddle.eats: يأكل {e}.
riddle.lives: يعيش {l}.
riddle.kind: هو نوع من {k}.
riddle.taste: طعمه {e}.
riddle.colour: لونه {c:a}.
riddle.ask: ما هو [يا ترى|]؟
riddle.end: {b:قال/قالت} {b}: «[ربما هو|لا بد أنه] {k:answer}!»
riddle.end: {b:فكر/فكرت} {b} {b:وقال/وقالت}: «إنه {k:answer}!» {a:فقال/فقالت} {a}: «[نعم|صحيح]!»
"""

QUESTIONS = """
ask.home: أين {a:يسكن/تسكن/أسكن/تسكن/تسكنين} {a}؟
ask.age: كم {a:of عمر}؟
ask.food: ما {a:of طعام مفضل}؟
ask.food: أي طعام {a:يحب/تحب/أحب/تحب/تحبين} {a} أكثر من غيره؟
ask.colour: ما {a:of لون مفضل}؟
ask.hobby: كيف {a:يحب/تحب/أحب/تحب/تحبين} {a} قضاء وقت {a:his فراغ}؟
ask.pet: أي حيوان {a:يربي/تربي/أربي/تربي/تربين} {a}؟
ask.wish: أي بلدة {a:يتمنى/تتمنى/أتمنى/تتمنى/تتمنين} {a} زيارتها يومًا ما؟
ask.friend: من أقرب {a:of رفاق}؟
ask.job: ما {a:of عمل}؟
ask.job: ماذا {a:يعمل/تعمل/أعمل/تعمل/تعملين} {a}؟
ask.kin: ما اسم {a:of {r}}؟
ask.kin: من {b:هو/هي} {a:of {r}}؟
ask.town.kind: في أي جزء من الجزيرة تقع {t}؟
ask.town.people: كم نسمة تسكن في {t}؟
ask.town.age: كم سنة مضت على بناء {t}؟
ask.town.product: بماذا تشتهر {t}؟
ask.town.river: أي نهر يجري عبر {t}؟
ask.town.hill: أي جبل يرتفع فوق {t}؟
ask.town.market: في أي يوم يقام السوق في {t}؟
ask.town.near: ما أقرب مكان إلى {t}؟
ask.thing.material: من أي شيء {x:يُصنع/تُصنع} {x} عادة؟
ask.thing.material: ما المادة التي {x:يُصنع/تُصنع} منها {x}؟
ask.thing.material: ما مادة {x}؟
ask.thing.material: اذكر مادة {x}.
ask.food.kind: بين أي أنواع الطعام نضع {f}؟
ask.food.kind: ما نوع {f}؟
ask.food.kind: من أي أنواع الطعام {f}؟
ask.food.kind: إلى أي نوع من الطعام نضم {f}؟
ask.food.taste: كيف طعم {f}؟
ask.food.taste: ما طعم {f}؟
ask.food.taste: ما الطعم الذي تتوقعه من {f}؟
ask.food.taste: صف طعم {f}.
ask.food.colour: ما لون {f}؟
ask.food.colour: أي لون هو لون {f}؟
ask.food.colour: بأي لون نرى {f} عادة؟
ask.food.colour: اذكر لون {f}.
ask.animal.legs: كم عدد أرجل {k}؟
ask.animal.legs: كم عدد الأرجل التي {k:يمشي/تمشي} عليها {k}؟
ask.animal.legs: ما عدد أرجل {k}؟
ask.animal.legs: عد أرجل {k}.
ask.animal.eats: ماذا {k:يأكل/تأكل} {k}؟
ask.animal.eats: على ماذا {k:يتغذى/تتغذى} {k}؟
ask.animal.eats: ما غذاء {k}؟
ask.animal.eats: على أي شيء {k:يعيش/تعيش} {k}؟
ask.animal.lives: أين {k:يعيش/تعيش} {k}؟
ask.animal.lives: أين بيت {k}؟
ask.animal.lives: في أي مكان {k:يعيش/تعيش} {k}؟
ask.animal.lives: أين {k:يتخذ/تتخذ} {k} {k:بيته/بيتها}؟
ask.job.place: أين يعمل {j}؟
ask.job.place: أين يمكن أن تجد {j}؟
ask.job.place: في أي مكان يعمل {j}؟
ask.job.place: ما مكان عمل {j}؟
answer: {v:answer}.
chat.wish: رياح طيبة!
chat.about.thing: حدثني عن {x}.
chat.about.food: حدثني عن {f}.
chat.about.animal: حدثني عن {k}.
chat.about.job: حدثني عن عمل {j}.
marked.question: سؤال: {q}
marked.answer: جواب: {q}
"""

SUMS = """
sum.buying: {a:اشترى/اشترت} {a} {f:acc} من السوق. الثمن {p} لكل {f:one}. {a:دفع/دفعت} {q:acc}.
sum.buying: ثمن كل {f:one} {p}، {a:ويريد/وتريد} {a} شراء {f:gen}. {a:أعطى/أعطت} البائع {q:acc}.
sum.buying.ask: كم درهمًا {a:يسترد/تسترد} {a}؟
sum.buying.answer: {a:يسترد/تسترد} {a} {v:acc}.
sum.giving: عند {a} {f}. ثم {b:أعطا/أعطت}{a:ه/ها} {b} {m:acc {x:id}} أيضًا.
sum.giving: كان في سلة {a} {f}، ثم {b:وضع/وضعت} فيها {b} {m:acc {x:id}} أيضًا.
sum.giving.ask: كم {x:acc} عند {a} الآن؟
sum.giving.answer: عند {a} الآن {v}.
sum.losing: كان عند {a} {f}، {a:وباع/وباعت} منها {m:acc {x:id}}.
sum.losing: {a:حمل/حملت} {a} {f:acc} إلى السوق، {a:وباع/وباعت} هناك {m:acc {x:id}}.
sum.losing.ask: كم {x:acc} {x:بقي/بقيت}؟
sum.losing.answer: {v:بقي/بقيت} {v}.
sum.sharing: {a:يوزع/توزع} {a} {f:acc} بالتساوي على {c:gen}.
sum.sharing: عند {a} {f} ل{c:gen}، ولكل طفل مثل نصيب غيره.
sum.sharing.ask: كم {x:acc} يأخذ كل طفل؟
sum.sharing.answer: يأخذ كل طفل {v:acc}.
sum.walking: {a:مشى/مشت} {a} {n:acc kilometre} من {t} إلى {u}، ثم {m:acc kilometre} إلى {w}.
sum.walking: من {t} إلى {u} {n:kilometre}، ومن {u} إلى {w} {m:kilometre}. {a:مشى/مشت} {a} ذلك كله.
sum.walking.ask: كم كيلومترًا {a:مشى/مشت} {a}؟
sum.walking.answer: {a:مشى/مشت} {a} {v:acc kilometre}.
sum.ages: عمر {a} {n:year}. وابن عم {b} أكبر من {a} ب{m:gen year}.
sum.ages.ask: كم سيكون عمر ابن العم بعد {k:gen year}؟
sum.ages.answer: بعد {k:gen year} سيكون عمر ابن العم {v:acc year}.
sum.hours: {a:يبدأ/تبدأ} {a} العمل {w:at} الساعة {h:d} {a:ويعمل/وتعمل} {n:acc hour}.
sum.hours.ask: في أي ساعة {a:ينتهي/تنتهي} {a} من العمل؟
sum.hours.answer: {a:ينتهي/تنتهي} {a} من العمل الساعة {v:d}.
sum.rows: {a:زرع/زرعت} {a} {n:acc row} من الأشجار، وفي كل صف {m:tree}.
sum.rows: في بستان {a} {n:row}، وفي كل صف {m:tree}.
sum.rows.ask: كم شجرة هناك [في المجموع|في الصفوف كلها]؟
sum.rows.answer: المجموع {v}.
sum.gathering: {a:جمع/جمعت} {a} {f:acc}، {b:وجمع/وجمعت} {b} {g:acc}.
sum.gathering.ask: كم {x:acc} {a:جمع/جمعت} {a} أكثر مما {b:جمع/جمعت} {b}؟
sum.gathering.answer: {a:جمع/جمعت} {a} {v:acc} أكثر.
step.add: {x:d} + {y:d} = {z:d}.
step.add: نجمع: {x:d} + {y:d} = {z:d}.
step.subtract: {x:d} - {y:d} = {z:d}.
step.subtract: نطرح: {x:d} - {y:d} = {z:d}.
step.multiply: {x:d} × {y:d} = {z:d}.
step.divide: {x:d} ÷ {y:d} = {z:d}.
step.divide: نقسم: {x:d} ÷ {y:d} = {z:d}.
drill.table: جدول ضرب العدد {n:gen}:
drill.ask: [كم يساوي|ما حاصل جمع] {x:d} + {y:d}؟
drill.tens: العشرات أولًا: {x:d} + {y:d} = {z:d}.
drill.ones: ثم الآحاد: {x:d} + {y:d} = {z:d}.
drill.answer: المجموع: {x:d} + {y:d} = {z:d}.
"""

WRITINGS = """
letter.dear: {b:عزيزي/عزيزتي} {b}،
letter.dear: تحية طيبة يا {b}،
letter.open: كيف حالك؟ أكتب إليك من {t} وقد حل {z} هنا.
letter.open: شكرًا على رسالتك. قرأتها {s:at} مرتين.
letter.open: حل {z} في {t}، وكثيرًا ما أفكر فيك.
letter.did: ذهبت أمس إلى {out} من أجل {h}.
letter.did: أردت {w} {h}، فقضيت اليوم كله {out:at}.
letter.bought: اشتريت {n:acc} ب{m:gen}.
letter.bought: {s:at} وجدت {x:acc} {c:acc {x:g}}. كان الثمن {m:acc}، فدفعته.
letter.saw: {s:at} رأيت {o:acc} {c:acc {o:g}} [اليوم|لأول مرة]. {o:نظر إليّ ثم هرب/نظرت إليّ ثم هربت}.
letter.saw: يا للمفاجأة! كان هناك {o:a} {s:at}!
letter.met: التقيت {b} {s:at}. تحدثنا عن {f} وضحكنا كثيرًا.
letter.met: {b:علّمني/علّمتني} {b} {w} {h}.
letter.sad: شعرت بأنني {e:a {a:g}}، فقد {why}.
letter.sad: أنا {e:a {a:g}} بسبب ما حدث: {why}.
letter.glad: أنا {e:a {a:g}} حقًا، فقد {why}!
letter.glad: عندي خبر سار: {why}. أنا {e:a {a:g}}.
letter.pet: {a:of {k:a}} {q} {k:[نام طوال اليوم/نامت طوال اليوم|هرب وعاد ليلًا/هربت وعادت ليلًا]}.
letter.invite: أرجو أن أراك في {t} [قريبًا|حين يسمح وقتك].
letter.invite: ما رأيك في زيارتي في {z}؟ يمكننا أن نذهب معًا إلى {s}.
letter.question: ما أخبارك؟ أنتظر رسالتك قريبًا.
letter.wish: أرجو أن تكون أحوالك بخير وأن نلتقي {s:at} من جديد.
letter.close: [مع محبتي|مع أطيب التمنيات|مع خالص الود]، {a}
diary.date: {w}
diary.open: استيقظت {c}.
diary.open: صحوت {c} ولم أستطع العودة إلى النوم.
diary.close: سأذهب غدًا إلى {s}. تصبحون على خير.
diary.close: أنا بحاجة إلى النوم الآن. سأكتب المزيد {w}.
diary.close: كان يومًا [جميلًا|طويلًا|غريبًا].
notice.title: إعلانات {t}، معلقة {s:at}
notice.lost: مفقود: {x:a} {c:a {x:g}}. {x:شوهد/شوهدت} آخر مرة {s:at}. ولمن {x:يجده/يجدها} {m}.
notice.lost: من رأى {x:acc} {c:acc {x:g}}؟ أظن أنني {x:نسيته/نسيتها} {s:at}.
notice.found: {x:عُثر عليه/عُثر عليها} {s:at}: {x:a} {c:a {x:g}}. التسليم {s2:at} {d}.
notice.market: يقام السوق {w} كالعادة. وينخفض هذه المرة ثمن {f}.
notice.market: {w} {fs:سيعرض/ستعرض} في سوق {t} {fs}.
notice.concert: ستعزف الموسيقى {s:at} {d} {h}. ثمن المقعد {m}.
notice.work: مطلوب: {j:a} يبدأ العمل {d}. الأجر {m} في اليوم.
notice.sale: للبيع: {x:a} {c:a {x:g}}، {x:مستعمل/مستعملة} قليلًا، ب{m:gen}.
notice.contact: اسأل عن {a} {s2:at}.
notice.contact: يرجى التحدث إلى {a}.
news.title: رسول أورين، {w}
news.bridge: افتتح {d} في {t} جسر جديد فوق {r}. واستغرق بناؤه {n:acc month}.
news.prize: {a:فاز/فازت} {a} من {t} بجائزة قدرها {m}، فلا أحد يجيد {y} {a:مثله/مثلها}.
news.harvest: جمع مزارعو {t} هذا الأسبوع {fs:acc}.
news.storm: أضرت عاصفة ب{n:gen roof} في {t}، ولم يصب أحد بأذى.
news.born: {k:وُلد/وُلدت} {d} {k} في مزرعة قرب {t}.
news.visitors: جاء إلى {t} {d} {n:visitor} لمشاهدة {s}.
news.quote_glad: {a:قال/قالت} {a}: «نحن [سعداء جدًا|مندهشون قليلًا].»
news.quote_glad: {a:قال/قالت} {a}: «[لم يتوقع أحد هذا|سنتحدث عن هذا سنوات].»
news.quote_sad: {a:قال/قالت} {a}: «[كان يمكن أن يكون الأمر أسوأ|سيساعد بعضنا بعضًا].»
news.quote_sad: {a:قال/قالت} {a}: «لم [أر شيئًا|أسمع بشيء] كهذا من قبل.»
recipe.title: {d:one} {f} على طريقة {a}
recipe.title: {d:one} {f}، وصفة {a}
recipe.needs: المقادير: {x} و{y} و{z}.
recipe.wash: اغسل {f} و{g} جيدًا.
recipe.cut: قطّع {f} إلى {n:gen piece}.
recipe.add: أضف {f} وقليلًا من الملح.
recipe.soup: اغل كل شيء معًا {n:acc minute} مع التحريك من حين إلى آخر.
recipe.pie: ضع كل شيء في العجين واخبزه {n:acc minute}.
recipe.salad: اخلط كل شيء واتركه {n:acc minute} في مكان بارد.
recipe.stew: اترك كل شيء على نار هادئة {n:acc minute}.
recipe.serve: قدّم الطعام في صحن {c:a}، وهو يكفي {n:acc person}.
recipe.step: {n:d}. {step}
hours.open: يوم في حياة {a} من {t}.
hours.up: في {c} {a:يستيقظ/تستيقظ} {a} {a:ويطعم/وتطعم} {a:his {k:a}}.
hours.up: {a:يصحو/تصحو} {a} {c}.
hours.eat: في {c} يحين وقت الفطور، وهو في العادة {f}.
hours.work: في {c} {a:يكون/تكون} {a} قد {a:وصل/وصلت} إلى {s}.
hours.work: يبدأ العمل {s:at} {c}.
hours.noon: في {c} يحين وقت أكل {f} والراحة قليلًا.
hours.free: بعد {c} {a:يتفرغ/تتفرغ} {a} ل{h}.
hours.bed: في {c} {a:يذهب/تذهب} {a} إلى النوم.
hours.bed: في {c} ينطفئ الضوء.
song.title: أغنية [|{z} ]من {t}
song.hill: فوق التل تمضي غيوم {c:a f}،
song.hill: على التل العالي تهب رياح {z}،
song.river: إلى {r} أمشي على مهل،
song.river: {r} عميق، {r} عريض،
song.bird: {k:جاء/جاءت} {k:a} {k:وجلس/وجلست} إلى جانبي،
song.bird: أنا و{k} صديقان منذ زمان،
song.star: نجم {c:a} يضيء الليلة فوق {t}،
song.star: عُدّ النجوم وضمني إليك،
song.road: طويل ومضيء هو الدرب إلى {t}،
song.road: أبيض بالثلج هو الدرب إلى {t}،
song.friend: أنا وصديقي نقتسم الضياء،
song.friend: الصديق كالمصباح في الظلام،
song.bread: {f} على المائدة والنار تخبو،
song.bread: هاتوا {f} والعسل وهيا نأكل،
song.rain: ناعم وحلو مطر {z}،
song.rain: مطر على السطح ووحل على قدمي،
song.boat: قارب {c:a} يتهادى مع الموج،
song.boat: صنعت قاربًا لأبحر إلى {t}،
song.sleep: نم يا حبيبي حتى تشرق شمس {z}،
song.sleep: والعالم كله بيت لي.
"""
