import { statfs } from "node:fs/promises";
import { dirname } from "node:path";
import type { LoadedConfig } from "../../config/load/load.js";
import { shellQuote } from "../../config/values/text.js";
import { systemCode } from "../../errors.js";
import type { HostRecord } from "../../model/host.js";
import { isLocal, problemsOf } from "../../runtime/files/file-system.js";
import { usable } from "../../runtime/files/shared-storage.js";
import { unlikeHosts } from "../../serve/heartbeat.js";
import { system } from "../../system/system.js";
import { checkState } from "../state.js";
import { type Finding, failed, ok, type Row, warning } from "./checks.js";
import type { RecordsContext } from "./records.js";

const LITTLE_SPACE_BYTES = 1_000_000_000;
const FEW_FILES = 10_000;

export const STATE_FOLDER: Row<LoadedConfig> = {
  name: "state folder",
  look: ({ config, stateRoot }) => {
    checkState(config, stateRoot);
    return ok(stateRoot);
  },
};

export const DISK_SPACE: Row<LoadedConfig> = { name: "disk space", look: diskSpace };

/** The check of the folder that all hosts share. Runs only if the configuration names such a folder. */
export function sharedStorage(shared: string): Row<RecordsContext> {
  return {
    name: "shared storage",
    look: async ({ fleet }) => await sharedFolder(shared, await fleet.hosts.list()),
  };
}

async function diskSpace({ config, stateRoot }: LoadedConfig): Promise<Finding> {
  const { shared } = config.storage;
  const spaces = await Promise.all([stateRoot, ...(shared === null ? [] : [shared])].map(freeSpace));
  const little = spaces.filter(({ bytes, files }) => bytes < LITTLE_SPACE_BYTES || files < FEW_FILES);
  const detail = (little.length === 0 ? spaces : little)
    .map(
      ({ path, bytes, files }) =>
        `${megabytes(bytes)}${files < FEW_FILES ? ` and ${files} files` : ""} free at ${path}`,
    )
    .join(", ");
  if (little.length === 0) return ok(detail);
  return warning(
    `only ${detail}; on a full disk, the fleet refuses new sessions and turns, but gc, delete and stop work`,
    "copilotfleet gc --dry-run",
  );
}

interface Space {
  path: string;
  bytes: number;
  /** How many more files the disk can hold. Infinity if the file system has no fixed number of files. */
  files: number;
}

/** The free space for this account at the path, or at the nearest existing folder above it. */
async function freeSpace(path: string): Promise<Space> {
  try {
    const { bavail, bsize, files, ffree } = await statfs(path);
    return { path, bytes: bavail * bsize, files: files === 0 ? Number.POSITIVE_INFINITY : ffree };
  } catch (error) {
    if (systemCode(error) !== "ENOENT" || dirname(path) === path) throw error;
    return { ...(await freeSpace(dirname(path))), path };
  }
}

function megabytes(bytes: number): string {
  return bytes < LITTLE_SPACE_BYTES ? `${Math.floor(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

async function sharedFolder(shared: string, hosts: readonly HostRecord[]): Promise<Finding> {
  const fileSystem = await usable(shared, async () => system().files.of(shared));
  const at = `${shared} on ${fileSystem.type} (${fileSystem.source} at ${fileSystem.mountPoint})`;
  const problems = await problemsOf(shared);
  if (problems.length > 0) {
    return failed(
      `${at}: this file system ${problems.join(", and it ")}`,
      "Put the shared storage on another file system, such as NFS 4 or CephFS.",
    );
  }
  const missing = await unlikeHosts(shared, hosts);
  if (missing.length > 0) {
    const detail = `${at} is not the folder that ${missing.join(", ")} shares`;
    return failed(detail, `findmnt --target ${shellQuote(shared)}  # on each host`);
  }
  const seen = hosts.filter(({ gone, storage }) => !gone && storage !== null).map(({ name }) => name);
  const proof =
    seen.length === 0
      ? "no host serves, so nothing proves that other hosts share it"
      : `shared with ${seen.join(", ")}`;
  const doubt = isLocal(fileSystem) ? ". This file system belongs to one machine" : "";
  return ok(`${at}: writable, and renames and links work; ${proof}${doubt}`);
}
