import { randomBytes } from "node:crypto";
import { open, rename, rm, stat } from "node:fs/promises";
import { resolve } from "node:path";
import { FleetError, isFleetError, option, quote, systemCode } from "../../base/errors.js";
import { unwritable } from "../../runtime/files/server-folder.js";
import type { Sessions } from "../../sessions/sessions.js";
import type { SessionView } from "../../sessions/view.js";
import type { Host } from "../fleet-hosts.js";
import { viewSessionOf } from "../gather.js";
import type { HistoryContext } from "./history.js";

interface ArchiveContext extends HistoryContext {
  sessions: Sessions;
}

interface ExportRequest {
  user: string;
  output: string;
  waitMs?: number | undefined;
  signal: AbortSignal;
}

export interface ExportedSession {
  session: SessionView;
  /** The absolute path of the archive. */
  file: string;
  /** The size of the archive. */
  bytes: number;
}

/** Writes a session of any host to a new file on this host. The file is there completely or not at all. */
export async function exportSession(
  context: ArchiveContext,
  id: string,
  request: ExportRequest,
): Promise<ExportedSession> {
  const { user, waitMs, signal } = request;
  const file = resolve(request.output);
  if (await isThere(file)) throw fileExists(file);
  const temporary = `${file}.${randomBytes(4).toString("hex")}.tmp`;
  try {
    const { bytes, leftOut } = await context.finder.whereItIs(id, user, async (_, host) => {
      if (host !== null) {
        const there = context.hosts.at({ here: false, host });
        return await fetchArchive(there, temporary, { id, user, waitMs, signal });
      }
      const { exportHere } = await import("../../sessions/archives.js");
      return await exportHere(context.sessions.context, temporary, { id, user, waitMs, signal });
    });
    await rename(temporary, file);
    if (leftOut > 0) context.warn(leftOutOf(id, leftOut));
    return { session: await viewSessionOf(context, id, user), file, bytes };
  } catch (error) {
    await rm(temporary, { force: true });
    throw isFleetError(error) || systemCode(error) === undefined ? error : unwritable(file, error);
  }
}

async function isThere(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}

/** @param there the host that has the session */
async function fetchArchive(
  there: Host,
  path: string,
  { signal, ...request }: Omit<ExportRequest, "output"> & { id: string },
): Promise<{ bytes: number; leftOut: number }> {
  const written = await there.exportSession(request, { signal });
  const { name } = written;
  const file = await open(path, "wx", 0o600);
  try {
    for (let offset = 0; offset < written.bytes; ) {
      const part = Buffer.from((await there.readArchive({ name, offset }, { signal })).bytes, "base64");
      if (part.length === 0) throw new Error(`Archive ${name} on host ${there.name} is cut short.`);
      await file.write(part, 0, part.length, offset);
      offset += part.length;
    }
    await file.sync();
    return written;
  } finally {
    await file.close();
    await there.dropArchive({ name }).catch(() => "the other host removes it later");
  }
}

interface ImportRequest {
  user: string;
  id?: string | undefined;
  signal: AbortSignal;
}

/** Creates a session from an archive, on the host that its user is placed on. */
export async function importSession(
  context: ArchiveContext,
  path: string,
  request: ImportRequest,
): Promise<SessionView> {
  const { user, id, signal } = request;
  const { checkArchive, importHere } = await import("../../sessions/archives.js");
  // Check the archive first, so that this host neither places the user nor sends anything for an archive that is
  // refused.
  const archived = await checkArchive(path);
  const host = await context.hosts.ofUser(user);
  if (host.name === context.hosts.own.name) await importHere(context.sessions, path, request);
  else {
    const name = await sendArchive(host, path, signal);
    await host.importArchive({ name, user, id }, { signal });
  }
  return await viewSessionOf(context, id ?? archived.session.id, user);
}

/** @returns the name of the archive on the other host */
async function sendArchive(there: Host, path: string, signal: AbortSignal): Promise<string> {
  const { PART_BYTES } = await import("../../sessions/archives.js");
  const file = await open(path, "r");
  try {
    let name: string | undefined;
    for (let offset = 0; ; ) {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(PART_BYTES), 0, PART_BYTES, offset);
      if (bytesRead === 0 && name !== undefined) return name;
      const bytes = buffer.subarray(0, bytesRead).toString("base64");
      ({ name } = await there.writeArchive({ name, offset, bytes }, { signal }));
      offset += bytesRead;
    }
  } finally {
    await file.close();
  }
}

function fileExists(path: string): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", `${option("output")} ${quote(path)} exists already.`, {
    suggestions: ["Choose the name of a new file."],
  });
}

function leftOutOf(id: string, count: number): string {
  const what = count === 1 ? "1 entry of its folder" : `${count} entries of its folder`;
  return `The archive of session ${quote(id)} leaves out ${what}: links, pipes, devices, and names that an archive cannot have.`;
}
