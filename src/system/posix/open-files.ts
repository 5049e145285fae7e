import { lines } from "./run.js";

/*
 * With `-F`, `lsof` prints each field on its own line. The first letter of the line is the kind of the field. `-n` and `-P`
 * turn off name lookups, and `-w` turns off warnings. Without root, `lsof` shows only the processes of this user.
 */

const FIELDS = ["-nPw"];

export function listensOn(platform: NodeJS.Platform, pid: number, port: number): boolean {
  const args = [...FIELDS, "-a", "-p", String(pid), `-iTCP:${port}`, "-sTCP:LISTEN", "-Fp"];
  return lines(platform, "lsof", args).includes(`p${pid}`);
}

/** The PIDs of the processes that have the file open for writing. */
export function writers(platform: NodeJS.Platform, path: string): number[] {
  const found: number[] = [];
  let pid = 0;
  for (const line of lines(platform, "lsof", [...FIELDS, "-Fpa", "--", path])) {
    if (line.startsWith("p")) pid = Number(line.slice(1));
    else if (line === "aw" || line === "au") found.push(pid);
  }
  return found;
}

/**
 * As `ProcessTable.connectedPorts`. Finds a connection only after the server has accepted it, because `lsof` shows the
 * server's end of it.
 */
export function connectedPorts(
  platform: NodeJS.Platform,
  ports: ReadonlySet<number>,
  except: ReadonlySet<number>,
): Set<number> {
  const found = new Set<number>();
  if (ports.size === 0) return found;
  const args = [...FIELDS, `-iTCP:${[...ports].join(",")}`, "-sTCP:ESTABLISHED", "-Fn"];
  for (const line of lines(platform, "lsof", args)) {
    const [, local, remote] = /^n.*:(\d+)->.*:(\d+)$/.exec(line) ?? [];
    if (ports.has(Number(local)) && !except.has(Number(remote))) found.add(Number(local));
  }
  return found;
}
