"""One short passage in many languages, to see what a vocabulary does to texts unlike its own.

All say the same, so that their numbers of tokens can be compared and not only the bytes per token.
"""

LANGUAGES = {
    "English": "The old gardener waters the small trees every morning before the sun is high. "
    "He says that patience is the best tool he has.",
    "German": "Der alte Gärtner gießt die kleinen Bäume jeden Morgen, bevor die Sonne hoch steht. "
    "Er sagt, Geduld sei das beste Werkzeug, das er habe.",
    "French": "Le vieux jardinier arrose les petits arbres chaque matin avant que le soleil soit "
    "haut. Il dit que la patience est le meilleur outil qu'il possède.",
    "Spanish": "El viejo jardinero riega los árboles pequeños cada mañana antes de que el sol esté "
    "alto. Dice que la paciencia es la mejor herramienta que tiene.",
    "Polish": "Stary ogrodnik podlewa małe drzewa każdego ranka, zanim słońce stanie wysoko. "
    "Mówi, że cierpliwość jest najlepszym narzędziem, jakie ma.",
    "Turkish": "Yaşlı bahçıvan her sabah güneş yükselmeden küçük ağaçları sular. "
    "Sabrın, sahip olduğu en iyi alet olduğunu söyler.",
    "Vietnamese": "Người làm vườn già tưới những cây nhỏ mỗi buổi sáng trước khi mặt trời lên cao. "
    "Ông nói rằng kiên nhẫn là công cụ tốt nhất mà ông có.",
    "Swahili": "Mtunza bustani mzee humwagilia miti midogo kila asubuhi kabla jua halijapanda juu. "
    "Anasema kwamba subira ndiyo chombo bora alicho nacho.",
    "Russian": "Старый садовник каждое утро поливает маленькие деревья, пока солнце не поднялось "
    "высоко. Он говорит, что терпение — лучший инструмент, который у него есть.",
    "Greek": "Ο γέρος κηπουρός ποτίζει τα μικρά δέντρα κάθε πρωί πριν ψηλώσει ο ήλιος. "
    "Λέει ότι η υπομονή είναι το καλύτερο εργαλείο που έχει.",
    "Arabic": "يسقي البستاني العجوز الأشجار الصغيرة كل صباح قبل أن ترتفع الشمس. "
    "ويقول إن الصبر هو أفضل أداة لديه.",
    "Hebrew": "הגנן הזקן משקה את העצים הקטנים בכל בוקר לפני שהשמש גבוהה. "
    "הוא אומר שסבלנות היא הכלי הטוב ביותר שיש לו.",
    "Hindi": "बूढ़ा माली हर सुबह सूरज चढ़ने से पहले छोटे पेड़ों को पानी देता है। "
    "वह कहता है कि धैर्य उसका सबसे अच्छा औज़ार है।",
    "Thai": "คนสวนชรารดน้ำต้นไม้เล็กๆ ทุกเช้าก่อนที่ดวงอาทิตย์จะขึ้นสูง เขาบอกว่าความอดทนเป็นเครื่องมือที่ดีที่สุดที่เขามี",
    "Chinese": "老园丁每天早晨在太阳升高之前给小树浇水。他说耐心是他最好的工具。",
    "Japanese": "年老いた庭師は、毎朝日が高くなる前に小さな木々に水をやる。"
    "忍耐こそ自分の一番の道具だと彼は言う。",
    "Korean": "늙은 정원사는 매일 아침 해가 높이 뜨기 전에 작은 나무들에 물을 준다. "
    "그는 인내심이 자신이 가진 가장 좋은 도구라고 말한다.",
}

OTHERS = {
    "Python": "def water(trees, litres=0.5):\n    for tree in trees:\n"
    "        if not tree.is_wet():\n            tree.water(litres)\n    return len(trees)\n",
    "Numbers": "1 12 123 1234 12345 123456 1234567 3.14159 2024-06-30 +44 20 7946 0958 0xDEAD",
    "Emoji": "🌱🌿🌳 👩‍🌾 waters 🪴🪴🪴 until ☀️ is up, then 😴💤",
}
