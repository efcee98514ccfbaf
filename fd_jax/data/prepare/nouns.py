"""English nouns that name people, and the words around them that tell where a phrase begins."""

import re


def _words(text: str) -> set[str]:
    return set(text.split())


_SINGULAR = """
man woman boy girl person human lady gentleman guy gal dude lad lass fellow bloke child kid baby
infant newborn toddler teen teenager tween youth youngster adolescent adult elder senior pensioner
individual figure pedestrian passerby bystander stranger tourist traveler traveller visitor guest
friend buddy boyfriend girlfriend partner spouse husband wife bride groom fiance fiancee bridesmaid
groomsman mother father mom mum dad mama papa mommy mummy daddy parent grandmother grandfather
grandma grandpa granny grandparent son daughter brother sister sibling twin uncle aunt nephew niece
cousin grandson granddaughter widow widower orphan neighbor neighbour citizen resident native
foreigner immigrant refugee villager farmer rancher cowboy cowgirl shepherd fisherman fisherwoman
hunter gardener miner carpenter plumber electrician mechanic welder builder worker laborer labourer
craftsman blacksmith potter tailor seamstress weaver baker butcher cook chef waiter waitress
bartender barista server cashier clerk shopkeeper salesman saleswoman salesperson seller vendor
merchant customer shopper businessman businesswoman businessperson entrepreneur executive manager
boss director secretary receptionist assistant employee colleague coworker accountant banker lawyer
attorney judge detective policeman policewoman officer cop sheriff guard firefighter fireman
paramedic soldier sailor marine warrior knight samurai ninja pirate viking general captain pilot
aviator astronaut cosmonaut driver biker cyclist motorcyclist skateboarder skater skier snowboarder
surfer swimmer diver climber hiker mountaineer camper runner jogger sprinter athlete gymnast boxer
wrestler fighter martial-artist footballer golfer goalkeeper player teammate coach trainer referee
umpire fan spectator bodybuilder doctor physician surgeon dentist nurse midwife pharmacist therapist
patient scientist researcher chemist physicist biologist engineer programmer developer designer
architect technician inventor teacher professor lecturer instructor tutor librarian student pupil
schoolboy schoolgirl graduate scholar philosopher historian writer author poet novelist journalist
reporter editor photographer cameraman filmmaker actor actress comedian entertainer performer
celebrity star model influencer singer musician rapper guitarist drummer pianist violinist cellist
saxophonist bassist composer conductor dj dancer ballerina clown mime magician juggler acrobat
artist painter sculptor illustrator politician president minister mayor senator congressman
congresswoman governor ambassador diplomat leader speaker activist protester volunteer king queen
prince princess emperor empress duke duchess noble nobleman noblewoman monk nun priest pastor bishop
cardinal pope rabbi imam pilgrim angel witch wizard sorcerer sorceress vampire zombie elf superhero
superheroine hero heroine villain nomad geisha hipster punk goth gentlewoman host hostess
presenter newscaster anchorman anchorwoman barber hairdresser stylist beautician maid butler nanny
babysitter beggar thief prisoner spy agent
"""

_PLURAL = """
men women people persons children guys ladies gentlemen folks firemen policemen policewomen
businessmen businesswomen businesspeople fishermen salesmen salespeople craftsmen noblemen
congressmen congresswomen groomsmen cameramen passersby wives heroes elves thieves
"""

# Collective noun -> the people it stands for; None where that is open.
COLLECTIVES: dict[str, int | None] = {
    "couple": 2,
    "duo": 2,
    "pair": 2,
    "trio": 3,
    "quartet": 4,
    "group": None,
    "crowd": None,
    "team": None,
    "family": None,
    "row": None,
    "line": None,
    "bunch": None,
}
ALWAYS_PEOPLE = {"couple", "duo", "trio", "group", "crowd", "family"}  # even without "of women"

NUMBERS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "both": 2,
}  # fmt: skip

DEFINITE = {"the", "this", "that", "these", "those", "both"}
DETERMINERS = DEFINITE | set(NUMBERS)
DETERMINERS |= _words(
    "a an another other some any each every several many few his her their my your our its"
)
ADJECTIVES = _words("""
    young old elderly middle-aged tall short small big little beautiful pretty handsome cute
    attractive happy sad angry serious strong slim thin fat black white asian african european
    american indian latin blond blonde dark-haired bearded bald smiling laughing
""")

# Words that no noun phrase goes back across.
BREAKS = _words("""
    and or but nor of in on at by with without to from for into onto over under near beside
    besides behind between among against along across around about above below beneath next like as
    than while when where who whom whose which that is are was were be been being am has have had
    does do did he she it they we i you him them there here then not no wearing holding
""")

# A person's noun before one of these is only part of a compound.
COMPOUNDS: dict[str, set[str]] = {
    "man": {"bun", "cave"},
    "baby": _words("blue bump carriage stroller shower grand powder bottle pink"),
    "child": {"seat"},
    "model": _words("train car airplane plane ship kit"),
    "player": {"piano"},
    "king": {"size", "sized", "bed"},
    "queen": {"size", "sized", "bed"},
    "star": _words("shaped fish fruit pattern print"),
    "family": _words("photo photograph portrait picture dinner home house car dog"),
    "group": _words("photo photograph portrait picture shot"),
    "couple": {"photo", "portrait"},
    "team": _words("photo photograph portrait picture jersey uniform shirt"),
    "figure": {"skating"},
    "cowboy": {"hat", "boots"},
    "baker": {"street"},
    "judge": {"gown"},
}

# "a statue of a man" shows nobody.
EFFIGIES = _words("statue sculpture bust mannequin figurine doll toy cutout")


def _plural(noun: str) -> str:
    if re.search("(s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search("[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


SINGULAR = frozenset(_SINGULAR.split())
PLURAL = frozenset(_PLURAL.split()) | {
    _plural(noun) for noun in SINGULAR if not noun.endswith(("man", "child", "person"))
}
PLURAL |= {"humans"}
