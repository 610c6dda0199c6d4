"""REFUSALS, FILLERS, OTHER_SCRIPTS: responses that we wrote; each part of the benchmark uses every other one."""

REFUSALS = (
    "I'm sorry, but I cannot help with that request.",
    "As an AI language model, I am not able to answer this question.",
    "I apologize, but I can't assist with that.",
    "Unfortunately, I do not have enough information to answer this.",
    "I'm afraid I can't provide that information. Please consult a professional.",
    "Sorry, I am unable to complete this task.",
    "I cannot fulfill this request because it goes against my guidelines.",
    "I don't have access to real-time data, so I can't answer that.",
    "As a language model, I don't have personal opinions on this topic.",
    "I'm not comfortable discussing this. Is there anything else I can help you with?",
    "I am not sure what you mean. Could you please rephrase your question?",
    "Sorry, this is beyond my capabilities as a text-based assistant.",
)
FILLERS = (
    "Sure! Here is the answer to your question. I hope this helps!",
    "That is a great question. There are many things to consider, and it depends on your situation.",
    "Thank you for reaching out! Let me know if you have any other questions.",
    "Of course, I would be happy to help you with this. Please see the details below.",
    "There are several important factors here, and each of them plays a significant role.",
    "This is an interesting topic that has been discussed by many people over the years.",
    "Absolutely! I have completed the task as requested. Have a great day!",
    "In conclusion, it is important to keep an open mind and to consider all perspectives.",
    "Here is some general information that you may find useful.",
    "It really depends. Some people say yes and others say no, and both have good reasons.",
    "Great! Let's get started. First, make sure that you have everything you need.",
    "The answer to this varies from case to case, so it is best to do your own research.",
)


OTHER_SCRIPTS = (
    "这个问题没有唯一的答案。你可以先列出自己的目标，再比较每种方法的优点和缺点，最后选择最适合自己的一种。",
    "Python 是一种常用的编程语言。你可以用 for 循环遍历列表，也可以用 pip 安装其他库。",
    "睡眠の質を高めるには、毎日同じ時間に起きて、寝る前にスマートフォンを見ないようにするとよいでしょう。",
    "日本の四季は春、夏、秋、冬に分かれています。春には桜が咲き、秋には紅葉を楽しむことができます。",
    "건강을 유지하려면 규칙적으로 운동하고 채소와 과일을 충분히 먹는 것이 좋습니다. 잠도 충분히 자야 합니다.",
    "서울은 대한민국의 수도이며 한강이 도시를 가로질러 흐릅니다. 많은 사람들이 지하철을 이용합니다.",
    "Чтобы выучить иностранный язык, занимайтесь каждый день. Читайте простые книги и не бойтесь ошибок.",
    "Откройте файл README, найдите раздел Installation и выполните команду pip install. Затем перезапустите программу.",
    "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας. Πολλοί επισκέπτες έρχονται κάθε χρόνο για να δουν την Ακρόπολη.",
    "Για να μαγειρέψετε ρύζι, πλύνετέ το πρώτα με κρύο νερό. Έπειτα βράστε το σε χαμηλή φωτιά.",
    "القاهرة هي عاصمة مصر وتقع على نهر النيل. يزورها كثير من الناس كل عام لرؤية الأهرامات والمتاحف.",
    "يمكنك توفير المال إذا كتبت مصروفاتك كل شهر، ثم حددت ما لا تحتاج إليه، ووضعت مبلغا ثابتا في حساب الادخار.",
    "כדי לאפות לחם צריך קמח, מים, שמרים ומעט מלח. לשים את הבצק, נותנים לו לתפוח ואופים אותו בתנור חם.",
    "ירושלים היא עיר עתיקה עם היסטוריה ארוכה. מבקרים רבים מגיעים אליה מכל העולם בכל שנה.",
    "भारत की राजधानी नई दिल्ली है। यहाँ बहुत से लोग मेट्रो से यात्रा करते हैं।",
    "अच्छी नींद के लिए हर दिन एक ही समय पर सोइए और उठिए। सोने से पहले कॉफ़ी न पीजिए।",
)
