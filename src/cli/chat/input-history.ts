import { appendFileSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ifThere, makeFolder } from "../../base/if-there.js";
import { chatHistoryPath } from "../../runtime/files/shared-storage.js";
import { ensureStateFolder } from "../../store/file/state-folder.js";

const MOST_PROMPTS = 1_000;
/** The size above which the file is shortened, in bytes. */
const LARGEST = 1_048_576;
/** The longest prompt that is recorded, in characters. */
const LONGEST_PROMPT = 32_768;

/**
 * The prompts that were typed in earlier chats, in one file for each user of this fleet and for each front door. Chats
 * that run at the same time add to the same file. Each line is a prompt as JSON.
 */
export class InputHistory {
  readonly #root: string;
  readonly #path: string;

  /** @param owner the user, or the front door */
  constructor(root: string, owner: string) {
    this.#root = root;
    this.#path = chatHistoryPath(root, owner);
  }

  /** The prompts, the oldest first. @throws a system error, or FleetError `FLEET_STATE_UNSAFE`. */
  load(): string[] {
    ensureStateFolder(this.#root);
    makeFolder(join(this.#root, "chat"));
    const prompts = promptsIn(ifThere(() => readFileSync(this.#path, "utf8")) ?? "");
    if ((statSync(this.#path, { throwIfNoEntry: false })?.size ?? 0) > LARGEST) this.#shorten(prompts);
    return prompts.filter((prompt, index) => prompt !== prompts[index + 1]).slice(-MOST_PROMPTS);
  }

  /** @throws a system error. */
  add(prompt: string): void {
    if (prompt.length > LONGEST_PROMPT) return;
    // The first line break separates this prompt from a line that another process left unfinished when it died.
    appendFileSync(this.#path, `\n${JSON.stringify(prompt)}\n`, { mode: 0o600 });
  }

  /** Keeps only the newest prompts in the file. Other chats may add prompts at the same time. */
  #shorten(prompts: readonly string[]): void {
    const lines = prompts.slice(-MOST_PROMPTS).map((prompt) => `${JSON.stringify(prompt)}\n`);
    while (lines.reduce((size, line) => size + line.length, 0) > LARGEST / 4)
      lines.splice(0, Math.ceil(lines.length / 4));
    writeFileSync(this.#path, lines.join(""));
  }
}

function promptsIn(text: string): string[] {
  return text.split("\n").flatMap((line) => {
    try {
      const prompt: unknown = line === "" ? null : JSON.parse(line);
      return typeof prompt === "string" ? [prompt] : [];
    } catch {
      return []; // a process died while it wrote this line
    }
  });
}
