import { readFileSync, renameSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseObject } from "../config/values/json.js";
import { closeQuietly, scratchName, writeNewFile } from "../store/file/commit/durable.js";
import { LogFiles } from "../store/file/events/files.js";
import { readIfThere } from "../store/file/failures.js";
import type { Conceal, Line } from "./line.js";

/** Other processes may compact the log at the same time, and so bring a name back from a file that they had read before. */
const MOST_ROUNDS = 20;

/** Whose events to conceal: a user, and the names that the user gave to sessions and servers. */
export interface Concealed {
  user: string;
  names: readonly string[];
}

/**
 * Puts pseudonyms in place of names into the events of this host. The chain stays whole, because the hashes cover names only by
 * their pseudonyms. Events that concern the user lose all of their names, also names that are not listed: the end of a session
 * may be noted after its record is gone.
 */
export async function concealInEvents(stateRoot: string, concealed: Concealed, conceal: Conceal): Promise<void> {
  const names = [...new Set([concealed.user, ...concealed.names])];
  const rewrite: Rewrite = { names, of: [concealed.user, conceal(concealed.user)], conceal };
  const files = new LogFiles(stateRoot);
  for (let round = 0; round < MOST_ROUNDS; round++) {
    const paths = [
      ...files.listAllSegments().map(({ path }) => path),
      ...files.listBatches().map((first) => files.batchPath(first)),
    ];
    let changed = 0;
    for (const path of paths) if (await concealInFile(path, rewrite)) changed++;
    if (changed === 0) return;
  }
}

interface Rewrite {
  names: readonly string[];
  /** The user, by name and by pseudonym. */
  of: readonly string[];
  conceal: Conceal;
}

/** @returns whether the file contained a name */
async function concealInFile(path: string, rewrite: Rewrite): Promise<boolean> {
  const before = readIfThere(path, () => readFileSync(path, "utf8"));
  const mayName = (text: string) => [...rewrite.names, ...rewrite.of].some((name) => text.includes(name));
  if (before === undefined || !mayName(before)) return false;
  const after = before
    .split("\n")
    .map((line) => (mayName(line) ? concealedLine(line, rewrite) : line))
    .join("\n");
  if (after === before) return false;
  const temporary = join(dirname(path), scratchName("tmp"));
  closeQuietly(await writeNewFile(temporary, Buffer.from(after)));
  renameSync(temporary, path);
  return true;
}

function concealedLine(line: string, { names, of, conceal }: Rewrite): string {
  const parsed = parseObject(line);
  if (parsed === undefined) return line;
  const event = parsed as unknown as Line;
  const hidden = (value: string | null) => (value !== null && names.includes(value) ? conceal(value) : value);
  const isOfUser = event.user !== null && of.includes(event.user);
  const hiddenId = (id: string | null) => (isOfUser && id !== null && !id.startsWith("~") ? conceal(id) : hidden(id));
  // The details of the fleet's own events name no user, and the heads of chains must stay legible.
  const isOwn = event.type === "host.head" || event.type === "events.shortened";
  const named = !isOwn && event.detail !== null && names.some((name) => event.detail?.includes(name));
  const detail = event.detail !== null && named ? conceal(event.detail) : event.detail;
  return JSON.stringify({
    ...event,
    actor: { ...event.actor, user: hidden(event.actor.user), os: hidden(event.actor.os) },
    user: hidden(event.user),
    sessionId: hiddenId(event.sessionId),
    serverId: hiddenId(event.serverId),
    detail,
  });
}
