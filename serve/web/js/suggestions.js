// First questions, for people who want to see what this is.

const QUESTIONS = [
  ["Explain something", "Why is the sky blue, and why are sunsets red?"],
  ["Write", "Write a short thank-you note to a teacher who changed how I think."],
  ["Plan", "Plan a rainy Sunday afternoon for two curious children."],
  ["Understand", "What is compound interest? Give me an example with numbers."],
  ["Cook", "I have eggs, rice and spinach. What can I cook in twenty minutes?"],
  ["Decide", "Should I learn Python or JavaScript first? Give me reasons for both."],
  ["Imagine", "Tell me a story of five sentences about a lighthouse that falls in love."],
  ["Practise", "Ask me three interview questions for a job in a library."],
];

/** Four of them, drawn anew for each visit. */
export function suggestions(random = Math.random) {
  const left = [...QUESTIONS];
  return Array.from({ length: 4 }, () => left.splice(Math.floor(random() * left.length), 1)[0]);
}
