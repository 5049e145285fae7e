// Provides redis-server for the tests of the Redis store. It runs before the tests. As root with apt-get, it installs
// Debian's package without asking. Otherwise, it warns that vitest will skip these tests.
import { spawnSync } from "node:child_process";

const TIMEOUT_MS = 180_000;

const has = (program) => spawnSync(program, ["--version"], { stdio: "ignore" }).error === undefined;

if (!has("redis-server")) {
  const mayInstall = process.getuid?.() === 0 && has("apt-get");
  if (mayInstall) {
    console.error("redis-server is not installed: installing Debian's package for the tests of the Redis store.");
    const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
    for (const args of [["update"], ["install", "-y", "redis-server"]]) {
      spawnSync("apt-get", ["-qq", ...args], { env, stdio: ["ignore", "ignore", "inherit"], timeout: TIMEOUT_MS });
    }
  }
  if (!has("redis-server")) {
    const why = mayInstall ? "could not be installed" : "is not installed (apt-get install redis-server)";
    console.error(`redis-server ${why}: the tests of the Redis store are skipped.`);
  }
}
