"""English sentences of conversations and stories (see language.py for the notation)."""

TALK = """
speech.script: {a}: {words}
speech.asked: {a} asked: "{words}"
speech.said: {a} said: "{words}"
speech.replied: {a} [said|replied|answered]: "{words}"
talk.meet: [It was {p}|One {p}] in {t}, and {a} met {b} {s:at}.
talk.meet: {a} and {b} met {s:at} of {t} one {p}.
talk.hello: [Hello|Good day|Welcome]!
talk.my_name: My name is {a}.
talk.my_name: I am {a}.
talk.and_you: And you?
talk.goodbye: [Goodbye|See you again]!
talk.goodbye: It was nice to meet you. Goodbye!
talk.thanks: [Thank you very much|Many thanks]!
market.scene: At the market of {t}, {a} stopped at {b:of} stall.
market.scene: {b} was selling food {s:at} when {a} came along.
market.ask: How much {f:be?} today?
market.ask: I would like some {f:s}. What do you ask?
market.price: {p} for {f:a}.
market.price: {f:a} is {p}.
market.praise: [Very fresh|The best on the island|Try a little]!
market.dear: That is too dear for me.
market.dear: {p} each? Last week it was less!
market.cheaper: All right, {p} each, because it is you.
market.take: [Then|Good,] I will take {c}.
market.take: Please give me {c}.
market.total: That makes {v}.
market.pay: Here you are: {v}.
way.scene: {a} had never been to {t} before and asked {b} the way.
way.ask: Excuse me, how do I get {s:to}?
way.first: Go straight on as far as {p}.
way.first: Cross {p} first.
way.then: Then turn [left|right], and you will see {s}.
way.then: After that take the [second|third] street on the [left|right].
way.far: Is it far from {h}?
way.minutes: No, only {n} minutes on foot.
way.minutes: You will be there in {n} minutes.
comfort.scene: {a} was sitting alone {s:at} and looked {e}.
comfort.scene: {b} found {a} {s:at}. {a:he} was very {e}.
comfort.ask: What is the matter?
comfort.ask: You look {e}. Do you want to tell me [about it|why]?
comfort.because: I feel {e}, because {why}.
comfort.because: Well, {why}. Now I am {e}.
comfort.understand: I understand [you|that well].
comfort.understand: [Oh dear|I am sorry]. Anybody would be {e}.
comfort.understand: It is all right to feel {e}.
comfort.lost: We will look for your {x} together. Two see more than one.
comfort.test: One exam is not the end. I will help you to learn for the next one.
comfort.moved: A friend far away is still a friend. You can write letters.
comfort.ill_pet: {q} is strong. Give it water and rest, and it will be better soon.
comfort.rain: The sun will come back, and the trip will wait for you.
comfort.quarrel: Speak to your neighbour tomorrow. A kind word opens many doors.
comfort.broken: Tell the truth and offer to mend it. Nobody can be angry for long.
comfort.dark: It was only the wind. I can stay until it is light.
comfort.laughed: They did not think about what they were doing. I did not laugh.
comfort.speech: Look at me while you speak, and breathe slowly.
comfort.left_out: Then play with me. Tomorrow we will ask the others together.
comfort.tired_work: You have done enough. Sit down and rest now.
comfort.waiting: Something must have kept them. Let us do something nice meanwhile.
comfort.grandmother: Let us visit your grandmother and bring her {f:s}.
comfort.doubt: Do you really think so?
comfort.doubt: But what if it happens again?
comfort.again: Yes. You are not alone.
comfort.again: Then we will try once more, you and I.
comfort.offer: Come, we will go {out:to} and {h}.
comfort.offer: First let us eat {f:s}. Everything looks better afterwards.
comfort.thanks: Thank you for listening. I feel a little better.
comfort.thanks: You are a good friend, {b}.
comfort.after: {a} smiled again, and {b} was glad.
comfort.after: They stayed together until evening.
cause.lost: {a} lost {a:his} {x}
cause.test: {a} did badly in an exam
cause.moved: {a:of} best friend moved away
cause.ill_pet: {a:of} {k} {q} fell ill
cause.rain: the rain spoiled {a:his} trip
cause.quarrel: {a} quarrelled with a neighbour
cause.broken: {a} broke a borrowed {x}
cause.dark: {a} heard strange noises in the dark
cause.laughed: the others laughed at {a:to}
cause.speech: {a} must speak in front of everybody
cause.left_out: nobody asked {a:to} to join the game
cause.tired_work: {a} worked until late at night
cause.waiting: {a} waited for hours and nobody came
cause.grandmother: {a:of} grandmother fell ill
cause.found: {a} found {a:his} {x} again
cause.prize: {a} won a prize
cause.visit: {b} came to visit {a:to}
cause.help: {b} helped {a:to} to carry a heavy box
cause.learned: {a:+have} learned to {h}
cause.gift: {b} gave {a:to} a {x}
cause.well_again: {a:of} {k} {q} is well again
cause.quiet: the evening is so quiet
cause.friend_new: {a} made a new friend
cause.snow: the first snow has fallen
lesson.scene: {a} was teaching {b} and {c}.
lesson.scene: In the lesson {a} asked {b} and {c} questions.
lesson.guess: Is it {v:answer}?
lesson.no: Not quite, {b}.
lesson.no: No, {b}, think again.
lesson.yes: [Right|Very good|Well done], {b}!
lesson.yes: Yes, that is right.
invite.ask: Shall we {h} together on {w}?
invite.ask: On {w} I am going {out:to} to {h}. Will you come?
invite.busy: On {w} I have no time. What about {v}?
invite.other_day: {v} is fine too.
invite.yes: [Gladly|With pleasure]!
invite.yes: What a good idea!
invite.when: When shall we meet?
invite.time: At {c}, {s:at}.
invite.bring: Please bring a {x} [and {f:s}|].
invite.agreed: Agreed. See you on {w}!
invite.agreed: Good, I will be there.
"""

STORIES = """
story.open: One {p} in {z}, {full} was {s:at} in {t}.
story.open: {full} lived in {t}. One {w} {p} {a:he} went {s:to}.
story.open: It was a {z} {p} in {t}. {full} had just come {s:to}.
story.open: This happened in {t}, to {full}, [one {z}|some years ago].
story.feel: {a} was very {e}.
story.feel: Never before had {a} been so {e}.
story.told: That evening {a} told {a:his} {r} {kin} everything.
story.night: That night {a} slept [well|deeply] and dreamed of {f:s}.
story.night: Then {a} went home to {q}, the {k}.
weather.sunny: The sun was shining [brightly|on all the roofs].
weather.rainy: It was raining [softly|a little|hard].
weather.windy: A strong wind blew [from the sea|through the streets].
weather.snowy: Snow lay on [every roof|the streets].
weather.foggy: Fog hid [the houses|the tops of the trees].
weather.cloudy: Grey clouds hung [low over the houses|in the sky].
weather.stormy: There was thunder [far away|over the hills].
weather.hot: It was so hot that even the [birds|dogs] were quiet.
detail.animal: A {c} {k} [sat|was sleeping|ran about] {s:at}.
detail.smell: There was a smell of {f:s} {s:at}.
detail.sound: From far off came the sound of [bells|music|a drum].
detail.sound: All of {t} was [quiet|awake].
detail.wears: {a} wore a {c} [hat|coat|scarf].
detail.carries: {a} was carrying {f} in a basket.
lost.start: {a} could not find {a:his} {c} {x}.
lost.start: Suddenly {a} noticed that {a:his} {c} {x} was gone.
lost.search: {a:he} looked {s2:at} and {s3:at}, but it was not there.
lost.search: {a:he} searched for it for {d}, first {s2:at} and then {s3:at}.
lost.ask: "Has anybody seen a {c} {x}?" {a:he} asked everyone.
lost.help: {b} heard of it. "Two see more than one," said {b} and came along.
lost.help: {b} promised to help.
lost.found: At last {b} saw something {c} {o}. It was the {x}!
lost.found: They looked everywhere, and then {a} found the {x} {o}.
lost.joy: {a} laughed and gave {b} {f:a}.
lost.joy: "Thank you!" cried {a}, and they ate {f:s} together.
lost.moral: Since then {a} has always put {a:his} {x} in the same place.
gift.start: {b} had a birthday on {w}, and {a} wanted to give {b:him} a {x}.
gift.start: Soon it would be {b:of} birthday. "What about a {x}?" thought {a}.
gift.money: {a} had saved {m}.
gift.money: In {a:his} purse there were only {m}.
gift.shop: But the {x} in the shop cost {m2}.
gift.sad: {a} went away slowly and did not know what to do.
gift.idea: Then {a} had an idea and made a {y} {a:himself}, all in {c}.
gift.idea: "I will make something," {a:he} said, and {a:he} worked on a {c} {y} for {d}.
gift.give: When {b} unwrapped the {y}, everybody was quiet for a moment.
gift.give: On {w} {a} put the {y} into {b:of} hands.
gift.joy: "This is the best present of all," said {b}.
gift.moral: A thing made with love is worth more than {m2}.
storm.start: {a} and {b} set out for {u} on {w}.
storm.start: {b} lived in {u}, and {a} wanted to take {b:him} home.
storm.clouds: On the way the sky grew dark.
storm.clouds: After an hour {c} clouds came up behind the hills.
storm.rain: Then it began to rain so hard that they could not see the road.
storm.rain: There was thunder, and soon they were wet to the skin.
storm.shelter: They ran to an old barn and waited there.
storm.shelter: "Over there!" cried {b}. They crept under the roof of a hut.
storm.share: {a} had only {f:a} left and gave {b} half of it.
storm.after: When the rain stopped, a rainbow stood over {u}.
storm.after: After a while it grew light again, and a {k} came out of the bushes.
storm.arrive: They reached {u} late, but they reached it together.
storm.moral: With a friend even a storm is not so bad.
repair.start: The {x} was broken, and {a} needed it on {w}.
repair.start: When {a} picked up the {x}, it fell apart.
repair.try: {a:he} tried to mend it with [glue|string|hammer and nails], but that made it worse.
repair.ask: So {a} went {s2:to} and asked {b} for help.
repair.ask: "Could you have a look at it?" {a:he} asked {b}.
repair.work: {b} worked on it for {d}.
repair.work: {b} looked at it from all sides, took out a small tool and began.
repair.again: In the end the {x} was better than before.
repair.again: "Try it now," said {b}, and it worked.
repair.pay: {a} wanted to pay {m}, but {b} took only {f:a}.
repair.moral: Whoever can mend things has many friends.
baking.start: {a} and {b} wanted to bake a {v} cake for {kin}.
baking.start: "Let us make a {v} cake," said {b}.
baking.gather: They fetched {vs}, flour and milk.
baking.mistake: But instead of sugar {a} took the salt.
baking.mistake: {b} counted the eggs wrongly, and {q} the {k} drank the milk.
baking.laugh: The cake was so bad that they had to laugh.
baking.laugh: They tasted it, looked at each other and burst out laughing.
baking.more: "Once more from the beginning," said {a}.
baking.share: The second cake was good, and {kin} ate three pieces.
baking.share: In the end there was enough for everybody {s2:at}.
baking.moral: Even a mistake can make a good day.
race.start: Every {z} there is a race from {t} to {u}, and {a} wanted to win it.
race.start: {a} and {b} both took part in the race to {u}.
race.train: {a:he} had trained for {d}, even in the rain.
race.nerves: On the morning of the race {a} could hardly eat {f:a}.
race.run: {a} ran past {s2} and {s3} and was soon in front.
race.run: The people {s2:at} called: "Faster, {a}!"
race.fall: Then {b} fell {s3:at}. {a} stopped and helped {b:him} up.
race.finish: They came to the finish hand in hand, and everybody cheered.
race.finish: Neither of them won, but the whole of {u} spoke of them.
race.moral: There are things more important than coming first.
stray.start: {s2:at} {a} found a little {k}, all alone.
stray.start: A thin {k} had followed {a} [all the way home|from {s2} to {s3}].
stray.feed: {a} gave it water and some {f:s}.
stray.ask: {a:he} asked everybody whose {k} it was.
stray.ask: "Who has lost a {k}?" {a} wrote on a piece of {c} paper.
stray.owner: After {d} {b} came. "That is my {q}!"
stray.owner: At last it turned out that the {k} was called {q} and belonged to {b}.
stray.home: {a} was sad to give {q} back, but {b} was so happy.
stray.home: {q} jumped up at {b} at once.
stray.visit: Since then {a} may visit {q} every {w}.
stray.moral: Whoever is good to animals is good to people too.
neighbour.start: {b} had just moved from {u} to {t} and knew nobody.
neighbour.start: In the house next to {a} there was somebody new: {b} from {u}.
neighbour.shy: {a} was shy and only looked out of the window.
neighbour.knock: On {w} {a} knocked at the door with a plate of {f:s}.
neighbour.knock: Then {a} took heart and brought {b} {fs}.
neighbour.talk: {b} told {a:to} about {u} and about a {k} called {q}.
neighbour.play: It turned out that both of them liked to {h}.
neighbour.friends: Soon they were together every day.
neighbour.friends: "Now {t} is my home," said {b}.
neighbour.moral: It takes only one knock to make a friend.
quarrel.start: {a} and {b} quarrelled about a {c} {x}.
quarrel.start: {b} had taken {a:of} {x} without asking.
quarrel.words: "It is mine!" cried {a}. "No, mine!" cried {b}.
quarrel.words: They said things that they did not mean.
quarrel.alone: For {d} they did not speak, and {a} sat {s2:at} alone.
quarrel.think: "{b} is more important than a {x}," thought {a}.
quarrel.sorry: {a} went {s3:to}, where {b} was, and said: "I am sorry."
quarrel.sorry: On {w} both said at the same time: "I am sorry."
quarrel.peace: They put the {x} between them and used it together.
quarrel.peace: Then they shared {f:a} and spoke of other things.
quarrel.moral: Saying sorry is hard, but staying angry is harder.
honest.start: {a} bought {fs} and paid with {m2}.
honest.start: {b} was selling {f:s}, and {a} bought some.
honest.change: On the way home {a} counted the change: it was {m} too much!
honest.think: With that money one could buy a {c} {x}.
honest.think: "Nobody would notice," thought {a} for a moment.
honest.back: But {a} turned round and gave {b} the {m} back.
honest.back: {a:he} ran back {s2:to} and told {b} the truth.
honest.praise: "You are honest," said {b} and gave {a:him} {f:a}.
honest.moral: A good name is worth more than money.
stage.start: On {w} there was a feast {s2:at}, and {a} was going to [sing|dance|read a poem] there.
stage.fear: So many people! {a:of} hands were shaking.
stage.fear: Just before it began {a} wanted to run away.
stage.breath: "Breathe slowly and look at me," said {b}.
stage.show: {a} looked at {b} in the first row and began.
stage.show: At first it went badly, then better and better.
stage.clap: In the end everybody clapped, {b} loudest of all.
stage.moral: Courage means being afraid and doing it all the same.
garden.start: In {z} {a} and {b} planted {v:s} behind the house.
garden.start: {b} gave {a} a handful of seeds in a {c} bag.
garden.wait: They waited for {d}, but nothing came up.
garden.dry: Then there was no rain for {d}, and the earth was dry.
garden.water: Every evening they carried water from the well.
garden.harvest: At last they could gather {vs}.
garden.harvest: One morning something green looked out of the earth, and soon there were {vs}.
garden.share: Half of it they gave to {kin} and the neighbours.
garden.moral: Good things take time.
"""
