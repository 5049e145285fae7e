import { readFileSync } from "node:fs";
import { FleetError } from "../errors.js";
import { linuxFiles } from "./file-systems.js";
import { linuxProcesses } from "./processes.js";

/* The questions to the operating system that Node.js does not answer. The other files of this folder read `/proc`. */

/**
 * The flag O_PATH of fcntl.h, which has this value on all processors that the runtime supports. Node.js has no constant
 * for it.
 */
export const O_PATH = 0o10000000;

/** A process that was alive when we looked. */
export interface SeenProcess {
  pid: number;
  parent: number;
  /** The time of its start, in the kernel's own unit. It distinguishes two processes with the same PID. */
  started: string;
}

export interface ProcessVariables extends SeenProcess {
  /** The variables that were asked for, as in the environment with which the process started. */
  variables: Readonly<Record<string, string | undefined>>;
}

/** How a process ended. One of the two is null. */
export interface ProcessExit {
  signal: NodeJS.Signals | null;
  code: number | null;
}

/** A control group of Linux (cgroups(7)). */
export interface ControlGroup {
  version: 1 | 2;
  /** The controllers of the hierarchy. Version 2 names them in a file of the folder. */
  controllers: readonly string[];
  /** Where the hierarchy is mounted. */
  mountPoint: string;
  /** The folder of the group. */
  folder: string;
}

export interface FileSystem {
  /** As the kernel names it: `ext4`, `nfs4`, `fuse.sshfs`. */
  type: string;
  /** The device that is mounted, or the export of a file server. */
  source: string;
  mountPoint: string;
}

export interface UnfitFileSystem {
  /** `kernel`: it cannot keep files. `network`: several hosts may share it. */
  kind: "kernel" | "network";
  name: string;
}

let boot: string | undefined;

export const linux = {
  processes: linuxProcesses,
  files: linuxFiles,
  /** A clock that all processes of the machine share, and that nobody can set. */
  clock: {
    /** Differs after each start of the machine. Times of different boots are not comparable. */
    bootId: () => (boot ??= readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()),
    /** Milliseconds since a moment of this boot: CLOCK_MONOTONIC, which stops while the machine sleeps. */
    nowMs: () => Number(process.hrtime.bigint()) / 1e6,
  },
};

/** Answers the questions on this machine. @throws FleetError `FLEET_PLATFORM_UNSUPPORTED` on any system but Linux */
export function system(platform: NodeJS.Platform = process.platform): typeof linux {
  if (platform === "linux") return linux;
  throw new FleetError("FLEET_PLATFORM_UNSUPPORTED", `This version runs on Linux only, not on ${platform}.`, {
    suggestions: ["Run it in a Linux container or virtual machine."],
  });
}
