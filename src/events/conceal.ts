import { readFileSync, renameSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseObject } from "../config/values/json.js";
import { closeQuietly, scratchName, writeNewFile } from "../store/file/commit/durable.js";
import { LogFiles } from "../store/file/events/files.js";
import { readIfThere } from "../store/file/failures.js";
import type { Conceal, Line } from "./line.js";

/** Other processes may compact the log at the same time, and so bring a name back from a file that they had read before. */
const MOST_ROUNDS = 20;

/**
 * Puts pseudonyms in place of names into the events of this host. The chain stays whole, because the hashes cover names only by
 * their pseudonyms.
 */
export async function concealInEvents(stateRoot: string, names: readonly string[], conceal: Conceal): Promise<void> {
  const files = new LogFiles(stateRoot);
  for (let round = 0; round < MOST_ROUNDS; round++) {
    const paths = [
      ...files.listAllSegments().map(({ path }) => path),
      ...files.listBatches().map((first) => files.batchPath(first)),
    ];
    let changed = 0;
    for (const path of paths) if (await concealInFile(path, names, conceal)) changed++;
    if (changed === 0) return;
  }
}

/** @returns whether the file contained a name */
async function concealInFile(path: string, names: readonly string[], conceal: Conceal): Promise<boolean> {
  const before = readIfThere(path, () => readFileSync(path, "utf8"));
  if (before === undefined || !names.some((name) => before.includes(name))) return false;
  const after = before
    .split("\n")
    .map((line) => (names.some((name) => line.includes(name)) ? concealedLine(line, names, conceal) : line))
    .join("\n");
  if (after === before) return false;
  const temporary = join(dirname(path), scratchName("tmp"));
  closeQuietly(await writeNewFile(temporary, Buffer.from(after)));
  renameSync(temporary, path);
  return true;
}

function concealedLine(line: string, names: readonly string[], conceal: Conceal): string {
  const parsed = parseObject(line);
  if (parsed === undefined) return line;
  const event = parsed as unknown as Line;
  const hidden = (value: string | null) => (value !== null && names.includes(value) ? conceal(value) : value);
  const detail =
    event.detail !== null && names.some((name) => event.detail?.includes(name)) ? conceal(event.detail) : event.detail;
  return JSON.stringify({
    ...event,
    actor: { ...event.actor, user: hidden(event.actor.user) },
    user: hidden(event.user),
    sessionId: hidden(event.sessionId),
    serverId: hidden(event.serverId),
    detail,
  });
}
