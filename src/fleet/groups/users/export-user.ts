import { mkdir, readdir, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { FleetError, isFleetError, option, quote, systemCode } from "../../../errors.js";
import { audited } from "../../../events/audited.js";
import { describeUser, type UserDescription } from "../../../peers/descriptions.js";
import { gatherEvents } from "../../../peers/events/all-events.js";
import { unknownUser } from "../../../peers/users.js";
import { unwritable } from "../../../runtime/files/server-folder.js";
import type { FleetParts } from "../../parts.js";
import type { SessionGroup } from "../sessions.js";

export interface ExportedUser {
  user: string;
  /** The absolute path of the folder. */
  folder: string;
  /** The ids of the sessions that have an archive in the folder. */
  sessions: string[];
  /** The sessions that could not be exported, and the reason for each. */
  remains: { session: string; why: string }[];
}

interface Context {
  parts: FleetParts;
  sessions: SessionGroup;
}

interface Request {
  output: string;
  signal: AbortSignal;
}

/** Unix time 0, so that the export contains the usage from all lines of the ledger. */
const FROM = 0;

export async function exportUser(context: Context, user: string, request: Request): Promise<ExportedUser> {
  const { parts } = context;
  const folder = resolve(request.output);
  const description = await describeUser(parts, user);
  if (description === null) throw await unknownUser(parts, user);
  await makeEmpty(folder);
  const about = { type: "user.exported", user } as const;
  return await audited(parts.events, about, async () => await fill(context, folder, description, request.signal));
}

async function fill(
  { parts, sessions }: Context,
  folder: string,
  description: UserDescription,
  signal: AbortSignal,
): Promise<ExportedUser> {
  const { user } = description;
  const exported: string[] = [];
  const remains: ExportedUser["remains"] = [];
  const owned = description.sessions.filter(({ owner }) => owner === user);
  for (const { id } of owned) {
    signal.throwIfAborted();
    try {
      await sessions.export(id, { user, output: join(folder, "sessions", `${id}.tar.gz`), signal });
      exported.push(id);
    } catch (error) {
      // Continue with the other sessions if this one is lost, or is on a host that cannot be reached.
      if (!isFleetError(error)) throw error;
      remains.push({ session: id, why: error.message });
    }
  }
  const usage = await parts.store.usage.read({ from: FROM, to: Date.now(), by: "day", user });
  const keyedTurns = await parts.store.keyedTurns.list(user);
  const own = await parts.store.limits.read(user);
  const { suspended = null, limits: max, groups } = own ?? {};
  const limits = own && { limits: max, groups, suspended };
  await write(folder, "user.json", { ...description, limits, exportedAt: new Date().toISOString(), remains });
  await write(folder, "usage.json", { usage });
  await write(folder, "keyed-turns.json", { keyedTurns });
  await write(folder, "events.json", { events: await gatherEvents(parts.hosts, { user }) });
  return { user, folder, sessions: exported, remains };
}

async function makeEmpty(folder: string): Promise<void> {
  try {
    await mkdir(folder, { mode: 0o700 });
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw unwritable(folder, error);
  }
  const names = await readdir(folder).catch((error: unknown) => {
    throw unwritable(folder, error);
  });
  if (names.length > 0) {
    throw new FleetError("FLEET_USAGE_INVALID", `${option("output")} ${quote(folder)} is a folder that is not empty.`, {
      suggestions: ["Choose the name of a new folder."],
    });
  }
  await mkdir(join(folder, "sessions"), { mode: 0o700 });
}

async function write(folder: string, name: string, content: object): Promise<void> {
  const path = join(folder, name);
  await writeFile(path, `${JSON.stringify(content, null, 2)}\n`, { flag: "wx", mode: 0o600 }).catch(
    (error: unknown) => {
      throw unwritable(path, error);
    },
  );
}
