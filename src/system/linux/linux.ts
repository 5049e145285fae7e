import { readFileSync } from "node:fs";
import { hrtimeMs } from "../hrtime.js";
import type { System } from "../system.js";
import { linuxFiles } from "./file-systems.js";
import { linuxProcesses } from "./processes.js";

let boot: string | undefined;

export const linux: System = {
  processes: linuxProcesses,
  files: linuxFiles,
  clock: {
    bootId: () => (boot ??= readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()),
    nowMs: hrtimeMs,
  },
};
