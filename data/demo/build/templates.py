"""How the demo world speaks: three statements and three questions for every attribute.

`{s}` is the subject (a name, a short form or a pronoun), `{v}` the value. The first two statements
of an attribute begin with the subject, so that they can open a passage.
"""

STATEMENTS = {
    # people
    "birth_year": [
        "{s} was born in the year {v}.",
        "{s} was born in {v}.",
        "The birth year of {s} was {v}.",
    ],
    "birthplace": [
        "{s} was born in the town of {v}.",
        "{s} came from {v}.",
        "The birthplace of {s} was {v}.",
    ],
    "occupation": [
        "{s} worked as a {v}.",
        "{s} was a {v} by profession.",
        "The occupation of {s} was {v}.",
    ],
    "spouse": ["{s} was married to {v}.", "{s} married {v}.", "The spouse of {s} was {v}."],
    "school": ["{s} studied at {v}.", "{s} graduated from {v}.", "The school of {s} was {v}."],
    "instrument": [
        "{s} played the {v}.",
        "{s} liked to play the {v}.",
        "The favourite instrument of {s} was the {v}.",
    ],
    "prize": ["{s} won the {v}.", "{s} was awarded the {v}.", "The {v} was given to {s}."],
    "language": [
        "{s} spoke {v}.",
        "{s} wrote in the {v} language.",
        "The mother tongue of {s} was {v}.",
    ],
    "sport": [
        "{s} was fond of {v}.",
        "{s} enjoyed {v} as a sport.",
        "The favourite sport of {s} was {v}.",
    ],
    "teacher": [
        "{s} was taught by {v}.",
        "{s} was a pupil of {v}.",
        "The teacher of {s} was {v}.",
    ],
    "home": ["{s} lived in {v}.", "{s} had a house in {v}.", "The home of {s} was in {v}."],
    "employer": [
        "{s} was employed by {v}.",
        "{s} had a job at {v}.",
        "The employer of {s} was {v}.",
    ],
    # films
    "director": [
        "{s} was directed by {v}.",
        "{s} had {v} as its director.",
        "The director of {s} was {v}.",
    ],
    "release": [
        "{s} was released in {v}.",
        "{s} came out in {v}.",
        "The release of {s} was in {v}.",
    ],
    "genre": [
        "{s} was a {v} film.",
        "{s} belongs to the {v} genre.",
        "The genre of {s} is {v}.",
    ],
    "star": ["{s} starred {v}.", "{s} had {v} in the lead role.", "The star of {s} was {v}."],
    "studio": [
        "{s} was financed by {v}.",
        "{s} was paid for by {v}.",
        "The studio behind {s} was {v}.",
    ],
    "music": [
        "{s} has music by {v}.",
        "{s} has a score written by {v}.",
        "The music of {s} was written by {v}.",
    ],
    "setting": ["{s} is set in {v}.", "{s} takes place in {v}.", "The setting of {s} is {v}."],
    "theme": [
        "{s} tells a story about {v}.",
        "{s} is about a group of {v}.",
        "The subject of {s} is {v}.",
    ],
    # companies
    "founder": [
        "{s} was founded by {v}.",
        "{s} had {v} as its founder.",
        "The founder of {s} was {v}.",
    ],
    "founding": [
        "{s} was founded in {v}.",
        "{s} was established in {v}.",
        "The founding of {s} was in {v}.",
    ],
    "headquarters": [
        "{s} has its headquarters in {v}.",
        "{s} is based in {v}.",
        "The headquarters of {s} is in {v}.",
    ],
    "product": ["{s} makes {v}.", "{s} is known for its {v}.", "The main product of {s} is {v}."],
    "chief": [
        "{s} is led by {v}.",
        "{s} has {v} as its head.",
        "The chief executive of {s} is {v}.",
    ],
    "rival": [
        "{s} competes with {v}.",
        "{s} is a competitor of {v}.",
        "The main rival of {s} is {v}.",
    ],
    "logo": [
        "{s} has a {v} in its logo.",
        "{s} uses a {v} as its symbol.",
        "The logo of {s} shows a {v}.",
    ],
    "colour": [
        "{s} paints its vans {v}.",
        "{s} owns vans that are {v}.",
        "The colour of the vans of {s} is {v}.",
    ],
    # places
    "mayor": ["{s} is governed by {v}.", "{s} has {v} as its mayor.", "The mayor of {s} is {v}."],
    "river": ["{s} lies on the {v}.", "{s} stands beside the {v}.", "The river of {s} is the {v}."],
    "country": [
        "{s} is a town in {v}.",
        "{s} belongs to {v}.",
        "The country of {s} is {v}.",
    ],
    "trade": ["{s} exports {v}.", "{s} lives from the trade in {v}.", "The trade of {s} is {v}."],
    "emblem": [
        "{s} has a {v} on its flag.",
        "{s} shows a {v} on its coat of arms.",
        "The emblem of {s} is a {v}.",
    ],
    "festival": [
        "{s} holds a festival in {v}.",
        "{s} celebrates its festival in {v}.",
        "The festival of {s} is in {v}.",
    ],
    "landmark": [
        "{s} is famous for its {v}.",
        "{s} is proud of its {v}.",
        "The landmark of {s} is the {v}.",
    ],
    "settlers": [
        "{s} was settled in {v}.",
        "{s} received its first settlers in {v}.",
        "The first settlers of {s} arrived in {v}.",
    ],
}

QUESTIONS = {
    "birth_year": [
        "In what year was {s} born?",
        "When was {s} born?",
        "What was the birth year of {s}?",
    ],
    "birthplace": [
        "Where was {s} born?",
        "In which town was {s} born?",
        "What was the birthplace of {s}?",
    ],
    "occupation": [
        "What was the occupation of {s}?",
        "What did {s} work as?",
        "What was the profession of {s}?",
    ],
    "spouse": [
        "Who was the spouse of {s}?",
        "Who was {s} married to?",
        "Who did {s} marry?",
    ],
    "school": [
        "Where did {s} study?",
        "Which college did {s} attend?",
        "From which school did {s} graduate?",
    ],
    "instrument": [
        "What instrument did {s} play?",
        "Which instrument did {s} like to play?",
        "What was the favourite instrument of {s}?",
    ],
    "prize": [
        "Which prize did {s} win?",
        "What award did {s} receive?",
        "Which prize went to {s}?",
    ],
    "language": [
        "What language did {s} speak?",
        "Which language did {s} write in?",
        "What was the mother tongue of {s}?",
    ],
    "sport": [
        "Which sport did {s} enjoy?",
        "What sport was {s} fond of?",
        "What was the favourite sport of {s}?",
    ],
    "teacher": [
        "Who taught {s}?",
        "Who was the teacher of {s}?",
        "By whom was {s} taught?",
    ],
    "home": [
        "Where did {s} live?",
        "In which town did {s} have a house?",
        "Where was the home of {s}?",
    ],
    "employer": [
        "Which company employed {s}?",
        "Who was the employer of {s}?",
        "At which company did {s} have a job?",
    ],
    "director": [
        "Who directed {s}?",
        "Who was the director of {s}?",
        "By whom was {s} directed?",
    ],
    "release": [
        "When was {s} released?",
        "In what year did {s} come out?",
        "What was the release year of {s}?",
    ],
    "genre": [
        "What is the genre of {s}?",
        "What kind of film is {s}?",
        "To which genre does {s} belong?",
    ],
    "star": [
        "Who starred in {s}?",
        "Who played the lead role in {s}?",
        "Who was the star of {s}?",
    ],
    "studio": [
        "Which studio paid for {s}?",
        "What was the studio behind {s}?",
        "Which studio financed {s}?",
    ],
    "music": [
        "Who wrote the music of {s}?",
        "By whom was the music of {s} written?",
        "Who wrote the score of {s}?",
    ],
    "setting": [
        "Where is {s} set?",
        "In which town does {s} take place?",
        "What is the setting of {s}?",
    ],
    "theme": [
        "What is the subject of {s}?",
        "What is {s} about?",
        "About whom does {s} tell a story?",
    ],
    "founder": [
        "Who founded {s}?",
        "Who was the founder of {s}?",
        "By whom was {s} founded?",
    ],
    "founding": [
        "When was {s} founded?",
        "In what year was {s} established?",
        "What was the founding year of {s}?",
    ],
    "headquarters": [
        "Where is {s} based?",
        "Where are the headquarters of {s}?",
        "In which town is the main office of {s}?",
    ],
    "product": [
        "What does {s} make?",
        "What is the main product of {s}?",
        "What is {s} known for?",
    ],
    "chief": [
        "Who leads {s}?",
        "Who is the chief executive of {s}?",
        "Who is the head of {s}?",
    ],
    "rival": [
        "Who is the main rival of {s}?",
        "Which company is a competitor of {s}?",
        "Which company competes with {s}?",
    ],
    "logo": [
        "Which animal is in the logo of {s}?",
        "What does the logo of {s} show?",
        "Which animal does {s} use as its symbol?",
    ],
    "colour": [
        "What colour are the vans of {s}?",
        "In which colour does {s} paint its vans?",
        "Which colour do the vans of {s} have?",
    ],
    "mayor": ["Who governs {s}?", "Who is the mayor of {s}?", "By whom is {s} governed?"],
    "river": [
        "On which river does {s} lie?",
        "What is the river of {s}?",
        "Beside which river does {s} stand?",
    ],
    "country": [
        "In which country is {s}?",
        "What is the country of {s}?",
        "To which country does {s} belong?",
    ],
    "trade": [
        "What does {s} export?",
        "What is the trade of {s}?",
        "From which trade does {s} live?",
    ],
    "emblem": [
        "Which animal is on the flag of {s}?",
        "What is the emblem of {s}?",
        "Which animal is on the coat of arms of {s}?",
    ],
    "festival": [
        "In which month is the festival of {s}?",
        "When does {s} hold its festival?",
        "When does {s} celebrate its festival?",
    ],
    "landmark": [
        "What is {s} famous for?",
        "What is the landmark of {s}?",
        "Which building is {s} proud of?",
    ],
    "settlers": [
        "When was {s} settled?",
        "In what year did {s} receive its first settlers?",
        "When did the first settlers of {s} arrive?",
    ],
}

# The sentence in a person's article that names the film, company or place they belong to, and the
# phrase by which a two-hop question speaks of that person.
LINKS = {
    "film": ["{s} was the director of {v}.", "{s} directed {v}."],
    "company": ["{s} was the founder of {v}.", "{s} founded {v}."],
    "place": ["{s} was the mayor of {v}.", "{s} served as mayor of {v}."],
}
ROLES = {
    "film": "the director of {s}",
    "company": "the founder of {s}",
    "place": "the mayor of {s}",
}

FILLERS = {
    "person": [
        "{s} wrote many letters about those years.",
        "{s} is remembered with great respect.",
        "Several books describe the later life of {s}.",
        "A small museum keeps the papers of {s}.",
    ],
    "film": [
        "{s} was shown again after many years.",
        "{s} is remembered with pleasure.",
        "Several books describe the making of {s}.",
        "A small museum keeps the costumes of {s}.",
    ],
    "company": [
        "{s} took a long time to build.",
        "{s} is known to many people.",
        "Several books describe the early years of {s}.",
        "Newspapers wrote many kind words about {s}.",
    ],
    "place": [
        "{s} is visited by many people.",
        "{s} has changed little over the years.",
        "Several books describe the streets of {s}.",
        "Old maps show the walls of {s}.",
    ],
}
