// Lints OpenAPI documents by Redocly's recommended rules, and ends with 1 if anything is found.
import { createConfig, lintFromString } from "@redocly/openapi-core";
import { readFile } from "node:fs/promises";

const config = await createConfig({
  extends: ["recommended"],
  // The process answers, or it does not: nothing about a question after its health can be wrong, nor about the page of the document.
  rules: { "operation-4xx-response": "off" },
});
for (const file of process.argv.slice(2)) {
  const source = await readFile(file, "utf8");
  for (const problem of await lintFromString({ source, absoluteRef: file, config })) {
    console.log(`${file}${problem.location[0]?.pointer ?? ""}: ${problem.severity} ${problem.ruleId}: ${problem.message}`);
    process.exitCode = 1;
  }
}
