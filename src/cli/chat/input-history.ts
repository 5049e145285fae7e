import {
  closeSync,
  fstatSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { systemCode } from "../../base/errors.js";
import { ifThere, makeFolder } from "../../base/if-there.js";
import { chatHistoryPath } from "../../runtime/files/shared-storage.js";
import { ensureStateFolder } from "../../store/file/state-folder.js";

const MOST_PROMPTS = 1_000;
/** The size above which the file is shortened, in bytes. */
const LARGEST = 1_048_576;
/** The longest prompt that is recorded, in characters. */
const LONGEST_PROMPT = 32_768;
/** If the lock is older than this, in milliseconds, the process that was shortening the file must have died. */
const STALE_MS = 60_000;

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
    if ((statSync(this.#path, { throwIfNoEntry: false })?.size ?? 0) > LARGEST) this.#shorten();
    const prompts = promptsIn(ifThere(() => readFileSync(this.#path, "utf8")) ?? "");
    return prompts.filter((prompt, index) => prompt !== prompts[index + 1]).slice(-MOST_PROMPTS);
  }

  /** @throws a system error. */
  add(prompt: string): void {
    if (prompt.length > LONGEST_PROMPT) return;
    // The first line break separates this prompt from a line that another process left unfinished when it died.
    const line = `\n${JSON.stringify(prompt)}\n`;
    // If another chat has replaced the file with a shorter one, add the line to the new file, too.
    for (let tries = 0; tries < 3; tries++) {
      const file = openSync(this.#path, "a", 0o600);
      try {
        writeSync(file, line);
        if (fstatSync(file).ino === statSync(this.#path, { throwIfNoEntry: false })?.ino) return;
      } finally {
        closeSync(file);
      }
    }
  }

  /** Replaces the file with one that has only the newest prompts. Does nothing while another chat replaces the file. */
  #shorten(): void {
    const lock = `${this.#path}.lock`;
    try {
      closeSync(openSync(lock, "wx", 0o600));
    } catch (error) {
      if (systemCode(error) !== "EEXIST") throw error;
      const made = statSync(lock, { throwIfNoEntry: false })?.mtimeMs ?? Date.now();
      if (Date.now() - made > STALE_MS) rmSync(lock, { force: true });
      return;
    }
    const file = openSync(this.#path, "r");
    try {
      const kept = newest(promptsIn(readFileSync(file, "utf8")));
      writeFileSync(`${this.#path}.new`, kept.map((prompt) => `${JSON.stringify(prompt)}\n`).join(""), { mode: 0o600 });
      renameSync(`${this.#path}.new`, this.#path);
      // Copy the prompts that other chats have added to the old file since it was read.
      for (const prompt of promptsIn(readFileSync(file, "utf8"))) this.add(prompt);
    } finally {
      closeSync(file);
      rmSync(lock, { force: true });
    }
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

function newest(prompts: readonly string[]): string[] {
  const kept: string[] = [];
  let size = 0;
  for (const prompt of prompts.toReversed()) {
    size += JSON.stringify(prompt).length;
    if (kept.length === MOST_PROMPTS || size > LARGEST / 4) break;
    kept.push(prompt);
  }
  return kept.reverse();
}
