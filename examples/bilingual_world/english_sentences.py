"""English sentences about facts, sums and everyday writing (see language.py for the notation)."""

FACTS = """
home: {a:+live} in {t}.
home: {a:of} [home|house] is in {t}.
age: {a:+be} {n} years old.
age: {a:+have} just turned {n}.
food: {a:+like} {f:s} [best of all|more than anything else].
food: [Nothing tastes better to|There is nothing better for] {a:to} than {f:s}.
food: {a:of} favourite food is {f}.
colour: {a:of} favourite colour is {c}.
colour: {a:+like} {c} better than any other colour.
hobby: {a:+like} to {h}.
hobby: In {a:his} free time {a:he+like} to {h}.
hobby: {h:ing} is what {a:+enjoy} most.
pet: {a:+have} a {k} [called|named] {q}.
pet: {a:+keep} a {k}, and its name is {q}.
wish: {a:+hope} to see {t} one day.
wish: {a:of} dream is to [visit|travel to] {t}.
friend: {a:of} best friend is {b}.
friend: {a:+have} known {b} for years, and {a:he+have} no better friend.
job: {a:+work} as a {j} {w:at}.
job: {a:+be} a {j} and {a:he+work} {w:at}.
duty: {a:of} work is to {d}.
duty: Every [day|morning] {a:+get} up early to {d}.
kin: {b} is {a:of} {r}.
kin: {a:of} {r} is called {b}.
portrait.start: {a} is somebody [everyone|nearly everyone] in {t} knows.
portrait.start: [Let me tell you about|This is|You should meet] {a} from {t}.
portrait.start: {a} comes from {t}.
portrait.end: If you meet {a:to} {s:at}, [say hello|give {a:him} my greetings].
portrait.end: You can often [find|see] {a:to} {s:at}.
town.kind: {t} is a [small|quiet|lively|pretty|] {k} in the {d} of Orrin.
town.kind: In the {d} of the island [lies|there is] a {k} called {t}.
town.people: [About|Some|Nearly] {n:d} people live in {t}.
town.people: {t} has about {n:d} [inhabitants|people].
town.age: {t} is {n} years old.
town.age: {t} was founded {n} years ago.
town.product: {t} is [well known|famous] for its {x:s}.
town.product: [Travellers|People from all over the island] come to {t} to buy {x:s}.
town.river: The river that runs through {t} is {r}.
town.river: {r} flows [past|through] {t}.
town.hill: Above {t} rises {m}.
town.hill: From {t} you can see {m} [on clear days|in the distance].
town.market: {t} has its market on {w}.
town.market: Every {w} there is a market in {t}.
town.near: The nearest place to {t} is {u}, {n} kilometres to the {d}.
town.near: {u} is the next place, only {n} kilometres to the {d} of {t}.
town.way: From {t} to {u} it is {n} kilometres [towards|to] the {d}.
town.way: Whoever wants to go from {t} to {u} must travel {n} kilometres {d}.
town.spot: In {t} people like to meet {s:at}.
town.spot: The heart of {t} is {s}.
town.resident: {a}, the {j}, lives here.
town.resident: One of the people of {t} is {a}, who works as a {j}.
season.spring: In spring the fields around {t} [turn green|are full of flowers].
season.spring: In spring [swallows come back to|cherry trees blossom all over] {t}.
season.summer: In summer [the nights are warm and people sit outside|children swim in the river].
season.summer: Summers in {t} are [long and dry|hot, but the evenings are cool].
season.autumn: In autumn [the leaves turn red and yellow|mist lies over the roofs] in {t}.
season.autumn: When autumn comes, {t} smells of [apples|wood smoke].
season.winter: In winter {t} is [quiet under the snow|cold, and every chimney smokes].
season.winter: In winter [the ponds freeze|days are short and stories are long] in {t}.
thing.use: A {x} is [useful if you want|there] to {u}.
thing.use: With a {x} you can {u}.
thing.material: A {x} is [usually|mostly|often] made of {m}.
thing.owner: {a} owns a {c} {x}.
thing.owner: The {x} that belongs to {a} is {c}.
animal.legs: A {k} has {n} legs.
animal.legs: {k:s} have {n} legs.
animal.eats: {k:s} [eat|like to eat|live on] {e}.
animal.lives: A {k} [usually lives|makes its home] {l}.
animal.seen: {a} once saw a {k} {s:at}.
animal.seen: One day a {k} [walked past|looked curiously at] {a} {s:at}.
food.kind: {f:+be} a kind of {k}.
food.taste: {f:+taste} {e}.
food.colour: {f:+be} [usually|mostly|] {c}.
food.bought: {a} often buys {k:s} [on the way home|{s:at}].
job.place: A {j} works {w:at}.
job.place: You will find a {j} {w:at}.
compare.age: {a} is {n} older than {b}.
compare.age: So {b} is {n} younger than {a}.
compare.same_age: {a} and {b} are exactly the same age.
compare.same_food: Both {a} and {b} like {v:s} best.
compare.same_colour: {a} and {b} have the same favourite colour, {v}.
compare.same_hobby: Both {a} and {b} like to {v}.
compare.food: {a} prefers {f:s}, while {b} prefers {g:s}.
compare.food: {a} likes {f:s} best, but {b} likes {g:s} best.
compare.people: That is {n:d} more people in {t} than in {u}.
compare.people: {t} is larger than {u} by {n:d} people.
compare.same_people: Just as many people live in {t} as in {u}.
compare.way: {t} lies {n} kilometres {d} of {u}.
riddle.start: {a} asked {b} a riddle:
riddle.start: "Guess what this is," said {a} to {b}.
riddle.legs: It has {n} legs.
riddle.eats: It eats {e}.
riddle.lives: It lives {l}.
riddle.kind: It is a kind of {k}.
riddle.taste: It tastes {e}.
riddle.colour: It is {c}.
riddle.ask: What [can it be|is it]?
riddle.end: "[Perhaps|It must be] {k:a}!" said {b}.
riddle.end: {b} thought for a while and said: "{k:a}!" "[Yes|Right]!" said {a}.
"""

QUESTIONS = """
ask.home: Where {a:?} live?
ask.age: How old {a:be?}?
ask.food: What {a:?} like to eat best?
ask.food: What is {a:of} favourite food?
ask.colour: What is {a:of} favourite colour?
ask.hobby: What {a:?} like to do in {a:his} free time?
ask.pet: What kind of animal {a:?} keep?
ask.wish: Which town {a:?} want to see one day?
ask.friend: Who is {a:of} best friend?
ask.job: What is {a:of} [work|job]?
ask.kin: What is the name of {a:of} {r}?
ask.kin: Who is {a:of} {r}?
ask.town.kind: In which part of the island is {t}?
ask.town.people: How many people live in {t}?
ask.town.age: How many years old is {t}?
ask.town.product: What is {t} famous for?
ask.town.river: Which river runs through {t}?
ask.town.hill: Which mountain rises above {t}?
ask.town.market: On which day is the market in {t}?
ask.town.near: Which place is nearest to {t}?
ask.thing.material: What is a {x} usually made of?
ask.thing.material: What material does one use for a {x}?
ask.thing.material: Of what material is a {x}?
ask.thing.material: Name the material of a {x}.
ask.food.kind: What kind of food {f:be?}?
ask.food.kind: Which kind of food {f:be?}?
ask.food.kind: What kind of food would you call {f:s}?
ask.food.kind: Under which kind of food do you count {f:s}?
ask.food.taste: How {f:?} taste?
ask.food.taste: What taste does one expect of {f:s}?
ask.food.taste: What is the taste of {f:s}?
ask.food.taste: Describe the taste of {f:s}.
ask.food.colour: What colour {f:be?}?
ask.food.colour: Which colour {f:be?}?
ask.food.colour: What is the colour of {f:s}?
ask.food.colour: Name the colour of {f:s}.
ask.animal.legs: How many legs does a {k} have?
ask.animal.legs: On how many legs does a {k} walk?
ask.animal.legs: How many legs has a {k}?
ask.animal.legs: Count the legs of a {k}.
ask.animal.eats: What does a {k} eat?
ask.animal.eats: What does a {k} live on?
ask.animal.eats: What is the food of a {k}?
ask.animal.eats: On what does a {k} feed?
ask.animal.lives: Where does a {k} live?
ask.animal.lives: Where does a {k} make its home?
ask.animal.lives: Where is the home of a {k}?
ask.animal.lives: In what place does a {k} live?
ask.job.place: Where does a {j} work?
ask.job.place: Where can one find a {j}?
ask.job.place: At what place does a {j} work?
ask.job.place: Where is a {j} to be found?
answer: {v:answer}.
chat.wish: Fair winds!
chat.about.thing: Tell me about {x:s}.
chat.about.food: Tell me about {f:s}.
chat.about.animal: Tell me about {k:s}.
chat.about.job: Tell me about the work of a {j}.
marked.question: Question: {q}
marked.answer: Answer: {q}
"""

SUMS = """
sum.buying: {a} buys {f} at the market. Each one costs {p}. {a:he} pays with {q}.
sum.buying: One costs {p}, and {a} wants {f}. {a:he} gives the seller {q}.
sum.buying.ask: How [much change|many coins] does {a:he} get back?
sum.buying.answer: {a} gets {v} back.
sum.giving: {a} has {f}. {b} gives {a:him} {m} more.
sum.giving: There were {f} in {a:of} basket, and then {b} put in another {m}.
sum.giving.ask: How many {x:s} does {a} have now?
sum.giving.answer: {a} has {v} now.
sum.losing: {a} had {f} and sold {m} of them.
sum.losing: {a} carried {f} to the market. {m} of them were sold.
sum.losing.ask: How many {x:s} are left?
sum.losing.answer: {v} are left.
sum.sharing: {a} shares {f} equally among {c}.
sum.sharing: {a} has {f} and {c} to give them to. Everyone gets the same.
sum.sharing.ask: How many does each child get?
sum.sharing.answer: Each child gets {v}.
sum.walking: {a} walks {n} kilometres from {t} to {u} and then {m} kilometres to {w}.
sum.walking: It is {n} kilometres from {t} to {u}, and {m} from there to {w}. {a} goes all the way.
sum.walking.ask: How far does {a} walk?
sum.walking.answer: {a} walks {v} kilometres.
sum.ages: {a} is {n} years old. {b:of} cousin is {m} years older than {a}.
sum.ages.ask: How old will the cousin be in {k} years?
sum.ages.answer: In {k} years the cousin will be {v} years old.
sum.hours: {a} starts work {w:at} at {h:d} and works for {n} hours.
sum.hours.ask: At what time does {a} finish?
sum.hours.answer: {a} finishes at {v:d}.
sum.rows: {a} plants {n} rows of trees with {m} trees in each row.
sum.rows: In {a:of} orchard there are {n} rows, and every row has {m} trees.
sum.rows.ask: How many trees is that [altogether|in all]?
sum.rows.answer: That is {v}.
sum.gathering: {a} gathered {f}, and {b} gathered {g}.
sum.gathering.ask: How many more {x:s} did {a} gather than {b}?
sum.gathering.answer: {a} gathered {v} more.
step.add: {x:d} + {y:d} = {z:d}.
step.add: We add: {x:d} + {y:d} = {z:d}.
step.subtract: {x:d} - {y:d} = {z:d}.
step.subtract: We take away: {x:d} - {y:d} = {z:d}.
step.multiply: {x:d} × {y:d} = {z:d}.
step.divide: {x:d} ÷ {y:d} = {z:d}.
step.divide: We divide: {x:d} ÷ {y:d} = {z:d}.
drill.table: The table of {n}:
drill.ask: [What is|How much is] {x:d} + {y:d}?
drill.tens: First the tens: {x:d} + {y:d} = {z:d}.
drill.ones: Then the ones: {x:d} + {y:d} = {z:d}.
drill.answer: Together: {x:d} + {y:d} = {z:d}.
"""

WRITINGS = """
letter.dear: Dear {b},
letter.dear: My dear {b},
letter.open: How are you? I am writing to you from {t}, where it is {z} now.
letter.open: Thank you for your letter. I read it {s:at}, twice.
letter.open: It is {z} in {t}, and I often think of you.
letter.did: Yesterday I went {out:to} to {h}.
letter.did: On {w} I wanted to {h}, so I spent the whole day {out:at}.
letter.bought: I bought {n} for {m}.
letter.bought: {s:at} I found a {c} {x}. It cost {m}, and I took it.
letter.saw: {s:at} I saw a {c} {o} [today|for the first time]. It looked at me and ran away.
letter.saw: Just think, a {o} was standing {s:at}!
letter.met: I met {b} {s:at}. We talked about {f:s} and laughed a lot.
letter.met: On {w} {b} showed me how to {h}.
letter.sad: I felt {e}, because {why}.
letter.sad: Something made me {e}: {why}.
letter.glad: I am so {e}, because {why}!
letter.glad: There is good news: {why}. I am {e}.
letter.pet: {q}, my {k}, [slept all day|ate all the {f:s}|ran off and came back at night].
letter.invite: Come and see me in {t} [soon|when you have time].
letter.invite: Will you visit me in {z}? We could go {s:to} together.
letter.question: What is new with you? Please write soon.
letter.wish: I hope that you are well and that we meet {s:at} again.
letter.close: [Yours|With love|Best wishes], {a}
diary.date: {w}
diary.open: Got up at {c}.
diary.open: I woke at {c} and could not sleep any more.
diary.close: Tomorrow I will go {s:to}. Good night.
diary.close: I am tired now. On {w} I will write more.
diary.close: It was a [good|long|strange] day.
notice.title: Notices from {t}, put up {s:at}
notice.lost: Lost: a {c} {x}. It was last seen {s:at}. The finder will get {m}.
notice.lost: Who has seen my {c} {x}? I must have left it {s:at}.
notice.found: Found {s:at}: a {c} {x}. The owner can fetch it {s2:at} on {d}.
notice.market: The market is on {w} as always. This time there will be {f:s} at a low price.
notice.market: On {w}, {fs} will be sold at the market of {t}.
notice.concert: On {d} at {h} there will be music {s:at}. A seat costs {m}.
notice.work: Wanted: a {j} who can start on {d}. The pay is {m} a day.
notice.sale: For sale: a {c} {x}, almost new, for {m}.
notice.contact: Ask for {a} {s2:at}.
notice.contact: Please speak to {a}.
news.title: The Orrin Messenger, {w}
news.bridge: In {t} a new bridge over {r} was opened on {d}. Building it took {n} months.
news.prize: {a} from {t} has won a prize of {m} because nobody could {y} better.
news.harvest: The farmers of {t} have brought in {fs} this week.
news.storm: A storm has damaged {n} roofs in {t}. Nobody was hurt.
news.born: {k} were born on a farm near {t} on {d}.
news.visitors: {n} visitors came to {t} on {d} to see {s}.
news.quote_glad: "We are [very glad|a little surprised]," said {a}.
news.quote_glad: "[Nobody expected this|We will talk about it for years]," said {a}.
news.quote_sad: "[It could have been worse|We will help one another]," said {a}.
news.quote_sad: "I have never [seen|heard] anything like it," said {a}.
recipe.title: How to make {f} {d}, as {a} does
recipe.title: {f} {d}, {a:of} recipe
recipe.needs: You need {x}, {y} and {z}.
recipe.wash: Wash the {f:s} and the {g:s} well.
recipe.cut: Cut the {f:s} into {n} pieces.
recipe.add: Add the {f:s} and a little salt.
recipe.soup: Boil everything for {n} minutes and stir now and then.
recipe.pie: Put everything into the dough and bake it for {n} minutes.
recipe.salad: Mix everything and let it stand for {n} minutes in a cool place.
recipe.stew: Let everything simmer over a low fire for {n} minutes.
recipe.serve: Serve it in a {c} bowl; it is enough for {n} people.
recipe.step: {n:d}. {step}
hours.open: A day in the life of {a} of {t}.
hours.up: At {c} {a:+get} up and {a:he+feed} the {k}.
hours.up: {a:+wake} at {c}.
hours.eat: At {c} there is breakfast, usually {f:s}.
hours.work: At {c} {a:+be} already {s:at}.
hours.work: The day {s:at} begins at {c}.
hours.noon: At {c} it is time to eat {f:s} and to rest a little.
hours.free: After {c} {a:+be} free to {h}.
hours.bed: At {c} {a:+go} to bed.
hours.bed: At {c} the light goes out.
song.title: A [song|{z} song] from {t}
song.hill: Over the hill the {c} clouds go,
song.hill: High on the hill the {z} winds blow,
song.river: Down to {r} I walk so slow,
song.river: {r} is deep and {r} is wide,
song.bird: A {k} came by and sat down at my side,
song.bird: The {k} and I are friends, I know,
song.star: A {c} star shines on {t} tonight,
song.star: Count the stars and hold me tight,
song.road: The road to {t} is long and bright,
song.road: The road to {t} is white with snow,
song.friend: My friend and I, we share the light,
song.friend: A friend is like a lamp at night,
song.bread: {f:+be} on the table, and the fire burns low,
song.bread: Bring {f:s} and honey, let us eat,
song.rain: The rain of {z} is soft and sweet,
song.rain: Rain on the roof and mud on my feet,
song.boat: A {c} boat rocks with the tide,
song.boat: I built a boat to sail to {t},
song.sleep: Sleep, my dear, till the {z} sun is free,
song.sleep: And all the world is home to me.
"""
