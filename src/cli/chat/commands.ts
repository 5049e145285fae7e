import { nearestOf } from "../../config/values/nearest.js";

/** The commands of the chat, as `/help` lists them. */
export const CHAT_COMMANDS = [
  { name: "help", argument: "", purpose: "shows the commands and the keys" },
  { name: "new", argument: "", purpose: "begins a new session" },
  { name: "resume", argument: "[ID]", purpose: "lists your sessions, or continues one" },
  { name: "model", argument: "[NAME]", purpose: "shows the model, or changes it for this session" },
  { name: "history", argument: "", purpose: "shows the whole conversation" },
  { name: "tools", argument: "", purpose: "shows the tool calls of the last turn with their results" },
  { name: "usage", argument: "", purpose: "shows the tokens that this chat has used" },
  { name: "exit", argument: "", purpose: "ends the chat" },
] as const;

export type CommandName = (typeof CHAT_COMMANDS)[number]["name"];

export const KEYS = [
  ["Enter", "sends the prompt"],
  ["Alt-Enter", "begins a new line, as does a \\ before Enter"],
  ["Up, Down", "show earlier and later prompts"],
  ["Ctrl-C", "cancels what runs, or clears the prompt; twice at an empty prompt, ends the chat"],
  ["Ctrl-D", "ends the chat at an empty prompt"],
  ["//text", "sends a prompt that begins with a slash"],
] as const;

export type Entered =
  | { kind: "prompt"; text: string }
  | { kind: "command"; name: CommandName; argument: string }
  | { kind: "unknown"; word: string; nearest: CommandName | undefined };

/** Tells commands from prompts: a single line that begins with `/` is a command. `//text` is the prompt `/text`. */
export function parseEntered(text: string): Entered {
  const trimmed = text.trim();
  if (trimmed.includes("\n")) return { kind: "prompt", text };
  if (trimmed.startsWith("//")) return { kind: "prompt", text: trimmed.slice(1) };
  // Users type `exit` to leave a shell, and nobody sends this word to a model on purpose.
  if (trimmed === "exit") return { kind: "command", name: "exit", argument: "" };
  if (!trimmed.startsWith("/")) return { kind: "prompt", text };
  const [, word = "", argument = ""] = /^\/(\S*)\s*(.*)$/s.exec(trimmed) ?? [];
  const names = CHAT_COMMANDS.map(({ name }) => name);
  const name = names.find((each) => each === word) ?? (word === "quit" ? "exit" : undefined);
  if (name !== undefined) return { kind: "command", name, argument };
  const [nearest] = nearestOf(word, names, (each) => each);
  return { kind: "unknown", word, nearest };
}
