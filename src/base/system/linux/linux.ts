import { readFileSync } from "node:fs";
import { hrtimeMs } from "../hrtime.js";
import { linuxFiles } from "./file-systems.js";
import { linuxProcesses } from "./processes.js";

let boot: string | undefined;

export const linux = {
  processes: linuxProcesses,
  files: linuxFiles,
  /** A clock that all processes of the machine share, and that nobody can set. */
  clock: {
    /** Differs after each start of the machine. Times of different boots are not comparable. */
    bootId: () => (boot ??= readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()),
    /** Milliseconds since a moment of this boot. */
    nowMs: hrtimeMs,
  },
};
